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
from inferline_stream.runs.run import Endpoints

_T = TypeVar("_T")

DEFAULT_PAGE_PORT = 8765
DEFAULT_METRICS_PORT = 9464
"""The port that Prometheus' registry gives to exporters of this kind."""


@contextmanager
def served(
    state: Callable[[], PipelineState | None],
    shape: Shape,
    endpoints: Endpoints,
    control: PageControl | None,
    note: Callable[[str], None],
) -> Iterator[None]:
    """Serve both from entering to leaving, and note where.

    A default port that is taken is replaced by a free one: two runs on one machine are no mistake.

    Args:
        state: returns the newest state; called from other threads.
        shape: for the page's picture of the DAG.
        endpoints: which of them, and where.
        control: what the page may have done; None for a page that is read-only.
        note: called with the addresses.

    Raises:
        UsageError: a port that is no default is taken.
    """
    arrows = tuple((shape.stages[a.parent], shape.stages[a.child], a.conditional) for a in shape.arrows)
    page_port, metrics_port, host = endpoints.page_port, endpoints.metrics_port, endpoints.metrics_host
    with ExitStack() as stack:
        if page_port is not None:
            page = _or_any(lambda port: PageServer(state, arrows, port, control=control), page_port, DEFAULT_PAGE_PORT)
            stack.enter_context(page)
            note(f"live page: {page.url}")
        if metrics_port is not None:
            metrics = _or_any(lambda port: serve_metrics(state, port, host), metrics_port, DEFAULT_METRICS_PORT)
            stack.callback(metrics.close)
            note(f"metrics: http://{host}:{metrics.port}/metrics")
        yield


def _or_any(serve: Callable[[int], _T], port: int, default: int) -> _T:
    try:
        return serve(port)
    except UsageError:
        if port != default:
            raise
        return serve(0)
