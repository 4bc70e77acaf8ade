"""The run's two pages for others: `/metrics` for Prometheus, and the live page.

The live page's commands become overrides in the control topic, as `scale`, `pause` and `resume` write them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TypeVar

from inferline_stream.controlplane.pipeline_context import PipelineContext
from inferline_stream.controlplane.records.control_records import Override
from inferline_stream.controlplane.records.record_writers import write_overrides
from inferline_stream.controlplane.run_options import Endpoints
from inferline_stream.errors import UsageError
from inferline_stream.observability.metrics import serve_metrics
from inferline_stream.observability.page.server import PageCommand, PageControl, PageServer
from inferline_stream.observability.page.what_if_server import Answers
from inferline_stream.observability.pipeline_state import PipelineState
from inferline_stream.pipeline.names import Names

_WRITTEN_WITHIN_S = 12.0
WHO = "the live page"


def overrides_of(command: PageCommand) -> list[tuple[str, Override | None]]:
    """Records of the control topic that bring a command about, by key; None takes an override back."""
    stage = command.stage
    match command.action:
        case "pause":
            return [("pause", Override("pause", who=WHO))]
        case "resume":
            return [("pause", None)]
        case "scale":
            return [(f"scale/{stage}", Override("scale", stage, command.replicas, who=WHO))]
        case "release":
            return [(f"{kind}/{stage}", None) for kind in ("scale", "limits", "standby")]


def page_control(token: str, bootstrap_servers: str, names: Names) -> PageControl:
    """Writes the page's commands from the running event loop, whatever thread they come from.

    Raises:
        UsageError: the token could be guessed.
    """
    loop = asyncio.get_running_loop()

    def obey(command: PageCommand) -> None:
        writing = write_overrides(bootstrap_servers, names, overrides_of(command))
        asyncio.run_coroutine_threadsafe(writing, loop).result(_WRITTEN_WITHIN_S)

    return PageControl(token, obey)


_T = TypeVar("_T")

_USUAL = Endpoints()


@contextmanager
def served(
    state: Callable[[], PipelineState | None],
    context: PipelineContext,
    endpoints: Endpoints,
    note: Callable[[str], None],
    what_if: Answers | None = None,
) -> Iterator[None]:
    """Serve both from entering to leaving, and note where.

    A default port that is taken is replaced by a free one: two runs on one machine are no mistake.

    Args:
        state: returns the newest state; called from other threads.
        context: of the pipeline, which people control from the page if they know its token.
        endpoints: which of them, and where.
        note: called with the addresses.
        what_if: answers of the live page's what-if page.

    Raises:
        UsageError: a port that is no default is taken.
    """
    shape, token, host = context.shape, endpoints.ui_token, endpoints.metrics_host
    arrows = tuple((shape.stages[a.parent], shape.stages[a.child], a.conditional) for a in shape.arrows)
    control = page_control(token, context.kafka.bootstrap_servers, context.names) if token else None
    with ExitStack() as stack:
        if endpoints.ui:
            page = _or_any(
                endpoints.ui_port,
                _USUAL.ui_port,
                lambda port: PageServer(state, arrows, port, control=control, what_if=what_if),
            )
            stack.callback(page.close)
            note(f"live page: {page.url}")
        if endpoints.metrics_port is not None:
            metrics = _or_any(
                endpoints.metrics_port, _USUAL.metrics_port, lambda port: serve_metrics(state, port, host)
            )
            stack.callback(metrics.close)
            note(f"metrics: http://{host}:{metrics.port}/metrics")
        yield


def _or_any(port: int, usual: int | None, serve: Callable[[int], _T]) -> _T:
    try:
        return serve(port)
    except UsageError:
        if port != usual:
            raise
        return serve(0)
