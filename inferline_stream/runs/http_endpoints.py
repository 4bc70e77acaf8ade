"""The run's two pages for others: `/metrics` for Prometheus, and the live page."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TypeVar

from inferline_stream.controlplane.pipeline_context import PipelineContext
from inferline_stream.controlplane.records.page_commands import page_control
from inferline_stream.controlplane.run_options import Endpoints
from inferline_stream.errors import UsageError
from inferline_stream.observability.metrics import serve_metrics
from inferline_stream.observability.page.server import PageServer
from inferline_stream.observability.pipeline_state import PipelineState

_T = TypeVar("_T")


@contextmanager
def served(
    state: Callable[[], PipelineState | None],
    context: PipelineContext,
    endpoints: Endpoints,
    note: Callable[[str], None],
) -> Iterator[None]:
    """Serve both from entering to leaving, and note where.

    A default port that is taken is replaced by a free one: two runs on one machine are no mistake.

    Args:
        state: returns the newest state; called from other threads.
        context: of the pipeline, which people control from the page if they know its token.
        endpoints: which of them, and where.
        note: called with the addresses.

    Raises:
        UsageError: a port that is no default is taken.
    """
    shape, token, host = context.shape, endpoints.ui_token, endpoints.metrics_host
    arrows = tuple((shape.stages[a.parent], shape.stages[a.child], a.conditional) for a in shape.arrows)
    control = page_control(token, context.kafka.bootstrap_servers, context.names) if token else None
    with ExitStack() as stack:
        if endpoints.ui:
            page = _or_any(lambda port: PageServer(state, arrows, port, control=control), endpoints.ui_port)
            stack.enter_context(page)
            note(f"live page: {page.url}")
        if endpoints.metrics_port is not None:
            metrics = _or_any(lambda port: serve_metrics(state, port, host), endpoints.metrics_port)
            stack.callback(metrics.close)
            note(f"metrics: http://{host}:{metrics.port}/metrics")
        yield


def _or_any(serve: Callable[[int], _T], port: int) -> _T:
    try:
        return serve(port)
    except UsageError:
        if port not in (Endpoints().ui_port, Endpoints().metrics_port):
            raise
        return serve(0)
