"""The OCR example: pages become lines and lines become texts again, read by its models in sealed replicas."""

import json
from pathlib import Path

import pytest

from inferline_stream.dataplane.sample_files import read_arrivals
from inferline_stream.dataplane.topology_loader import load_topology
from tests.support.director import Director

EXAMPLE = Path(__file__).parents[2] / "topologies/ocr"
PAGES = ("blank", "serif italic 0", "mono 0")


@pytest.fixture(scope="module")
def accuracy():
    load_topology(EXAMPLE)  # whose folder is searched for modules from then on
    import accuracy

    return accuracy


@pytest.mark.parametrize(
    ("read", "said", "distance"),
    [("", "", 0), ("", "abc", 3), ("abc", "", 3), ("kitten", "sitting", 3), ("a b", "ab", 1), ("rn", "m", 2)],
)
def test_what_is_wrong_is_counted_in_edits(accuracy, read, said, distance):
    assert accuracy.edits(read, said) == distance


async def test_pages_become_lines_and_one_text_each_that_says_what_they_say(embedded_broker, accuracy):
    rows = [json.loads(line) for line in (EXAMPLE / "pages.jsonl").read_text().splitlines()]
    known = {row["page"]: row["lines"] for row in map(json.loads, (EXAMPLE / "known.jsonl").read_text().splitlines())}
    lines = sum(len(known[page]) for page in PAGES)
    assert lines > 8
    pages = [json.dumps(row).encode() for row in rows if row["name"] in PAGES]
    async with Director(embedded_broker.bootstrap_servers, EXAMPLE / "topology.py", max_batch_size=4) as director:
        await director.start()
        await director.put(pages)
        await director.until_finished("text", len(pages), 120.0)
        texts = [json.loads(record.value) for record in await director.results()]
        await director.until(lambda: director.total("read", "events") == lines, f"{lines} lines are reported")
    assert sorted(text["page"] for text in texts) == ["", "mono 0", "serif italic 0"]
    found = accuracy.by_font(texts)
    assert found["blank"] == (1, 0, 0)
    pages_read, characters, wrong = found["all"]
    assert (pages_read, characters) == (3, sum(len("\n".join(known[page])) for page in PAGES))
    assert wrong <= 0.02 * characters


def test_the_live_arrivals_pass_those_that_the_planner_knows():
    planned, live = (read_arrivals(EXAMPLE / name) for name in ("arrivals.csv", "live.csv"))
    assert len(live) / live.duration_s > 1.25 * len(planned) / planned.duration_s
