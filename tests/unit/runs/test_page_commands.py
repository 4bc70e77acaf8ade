import pytest

from inferline_stream.controlplane.records.control_records import Overrides
from inferline_stream.observability.page.server import PageCommand
from inferline_stream.runs.http_endpoints import WHO, overrides_of


def obeyed(*commands: PageCommand) -> Overrides:
    found = Overrides()
    for command in commands:
        for key, override in overrides_of(command):
            assert override is None or override.key == key
            found = found.with_record(key, override)
    return found


def test_pause_holds_decisions_until_resume() -> None:
    assert obeyed(PageCommand("pause")).paused(0.0)
    assert not obeyed(PageCommand("pause"), PageCommand("resume")).paused(0.0)


@pytest.mark.parametrize("replicas", [0, 5])
def test_scale_holds_a_stage_until_it_is_released(replicas: int) -> None:
    limits = obeyed(PageCommand("scale", "search", replicas)).limits(0.0)["search"]
    assert (limits.minimum, limits.maximum) == (replicas, replicas)
    assert obeyed(PageCommand("scale", "search", replicas), PageCommand("release", "search")).limits(0.0) == {}


def test_what_the_page_sets_is_recorded_as_the_pages() -> None:
    assert [o.who for _, o in overrides_of(PageCommand("pause")) if o is not None] == [WHO]
