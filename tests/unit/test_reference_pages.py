"""Pages of the reference that follow from the code are as the code is; the site's menu has every page."""

import re
import runpy
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest

DOCS = Path(__file__).parents[2] / "docs"


def generator() -> SimpleNamespace:
    return SimpleNamespace(**runpy.run_path(str(DOCS / "reference_pages.py")))


@pytest.fixture(scope="module")
def written() -> dict[str, str]:
    return generator().pages()


@pytest.mark.parametrize("name", ["api.md", "commands.md", "settings.md", "topics.md"])
def test_a_page_is_what_the_code_says(name: str, written: dict[str, str]) -> None:
    assert (DOCS / "reference" / name).read_text() == written[name], "run: python docs/reference_pages.py"


def test_the_list_for_language_models_has_every_page_of_the_menu() -> None:
    found = (DOCS / "llms.txt").read_text()
    assert found == generator().llms(), "run: python docs/reference_pages.py"
    assert set(re.findall(r"\]\(([\w/-]+\.md)\)", found)) == {str(p.relative_to(DOCS)) for p in DOCS.rglob("*.md")}


def test_every_argument_of_a_topology_has_its_meaning(written: dict[str, str]) -> None:
    from inferline_stream import Pipeline, Stage

    for found in (Pipeline, Stage):
        names = set(found.__init__.__annotations__) - {"return"}
        section = written["api.md"].split(f"\n## {found.__name__}\n")[1].split("\n## ")[0]
        assert names <= set(re.findall(r"^\| `(\w+)` \| \S", section, re.MULTILINE))


def test_the_menu_and_the_first_page_name_every_page() -> None:
    menu = set(re.findall(r'= "([\w/-]+\.md)"', (DOCS / "zensical.toml").read_text()))
    pages = {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")}
    assert menu == pages
    named = set(re.findall(r"\]\(([\w/-]+\.md)\)", (DOCS / "index.md").read_text()))
    assert named == pages - {"index.md"}
    assert tomllib.loads((DOCS / "zensical.toml").read_text())["project"]["docs_dir"] == "."
