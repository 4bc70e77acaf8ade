"""What readers who come from elsewhere look for is a few links away from where they begin."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"\]\(([^)#:]+\.md)(?:#[^)]*)?\)")


def clicks(start: Path) -> dict[Path, int]:
    """Links to follow from a page to each other one."""
    found, edge = {start: 0}, [start]
    for page in edge:
        for link in LINK.findall(page.read_text()):
            target = (page.parent / link).resolve()
            if target not in found and target.exists():
                found[target] = found[page] + 1
                edge.append(target)
    return found


@pytest.mark.parametrize("start", ["README.md", "docs/index.md"])
@pytest.mark.parametrize("page", ["from-keda", "from-ray-serve"])
def test_how_to_adopt_what_it_costs_and_what_breaks_is_three_clicks_away_at_most(start: str, page: str) -> None:
    asked = ROOT / f"docs/how-to/{page}.md"
    assert clicks(ROOT / start)[asked] <= 2  # the third leads to the section
    headings = re.findall(r"^## (.+)$", asked.read_text(), re.MULTILINE)
    assert headings == ["How to adopt", "What it costs", "What breaks"]


def test_every_page_of_the_site_can_be_reached_within_three_clicks() -> None:
    found = clicks(ROOT / "docs/index.md")
    pages = {page for page in (ROOT / "docs").rglob("*.md") if "site" not in page.parts}
    assert {page for page in pages if found.get(page, 9) > 3} == set()
