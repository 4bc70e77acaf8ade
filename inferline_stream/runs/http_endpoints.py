"""The run's two pages for others: `/metrics` for Prometheus, and the live page."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TypeVar

from inferline_stream.errors import UsageError
from inferline_stream.observability.metrics import serve_metrics
from inferline_stream.observability.page.control import PageControl
from inferline_stream.observability.page.server import PageServer
from inferline_stream.observability.pipeline_state import PipelineState
from inferline_stream.pipeline.shape import Shape

_T = TypeVar("_T")

DEFAULT_PAGE_PORT = 8765
DEFAULT_METRICS_PORT = 9464
"""The port that Prometheus' registry gives to exporters of this kind."""


@contextmanager
def served(
    state: Callable[[], PipelineState | None],
    shape: Shape,
    *,
    page_port: int | None,
    control: PageControl | None,
    metrics_port: int | None,
    metrics_host: str = "127.0.0.1",
    note: Callable[[str], None],
) -> Iterator[None]:
    """Serve both from entering to leaving, and tell where.

    A default port that is taken is replaced by a free one: two runs on one machine are no mistake.

    Args:
        state: returns the newest state; called from other threads.
        shape: for the page's picture of the DAG.
        page_port: of the live page; 0 for any free one, None for no page.
        control: what the page may have done; None for a page that is read-only.
        metrics_port: of `/metrics`; likewise.
        metrics_host: address that it is served on.
        note: called with the addresses.

    Raises:
        UsageError: a port that is no default is taken.
    """
    arrows = tuple((shape.stages[a.parent], shape.stages[a.child], a.conditional) for a in shape.arrows)
    with ExitStack() as stack:
        if page_port is not None:
            page = _or_any(lambda port: PageServer(state, arrows, port, control=control), page_port, DEFAULT_PAGE_PORT)
            stack.enter_context(page)
            note(f"live page: {page.url}")
        if metrics_port is not None:
            metrics = _or_any(lambda port: serve_metrics(state, port, metrics_host), metrics_port, DEFAULT_METRICS_PORT)
            stack.callback(metrics.close)
            note(f"metrics: http://{metrics_host}:{metrics.port}/metrics")
        yield


def _or_any(serve: Callable[[int], _T], port: int, default: int) -> _T:
    try:
        return serve(port)
    except UsageError:
        if port != default:
            raise
        return serve(0)
