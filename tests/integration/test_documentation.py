"""What the pages beside the code say can be done: every command in them runs, every link leads somewhere."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    page
    for page in (*ROOT.glob("*.md"), *ROOT.glob("inferline_stream/*.md"), *ROOT.glob("inferline_stream/*/*.md"))
    if page.name != "README.md" or page.parent != ROOT  # .ci/run calls README.md's own commands
)
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]+\]\(([^)#]+)(?:#[^)]*)?\)")
DEADLINE_S = 120


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, language: str) -> list[str]:
    return [text for found, text in BLOCK.findall(page.read_text()) if found == language]


def run(command: str, folder: Path) -> str:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "COLUMNS": "200"}
    ran = subprocess.run(
        ["bash", "-eu", "-c", command], cwd=folder, env=environment, capture_output=True, text=True, timeout=DEADLINE_S
    )
    assert ran.returncode == 0, f"{command}\n{ran.stdout}\n{ran.stderr}"
    return ran.stdout


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "sh")], ids=name_of)
def test_every_command_of_a_page_runs_as_it_stands(page: Path, tmp_path: Path) -> None:
    run("inferline-stream init here", tmp_path)
    if whole := [code for code in blocks(page, "python") if code.startswith("from ")]:
        (tmp_path / "here/topology.py").write_text(whole[0])
    for commands in blocks(page, "sh"):
        run(commands, tmp_path / "here")


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md"], ids=name_of)
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    links = [link for link in LINK.findall(page.read_text()) if "://" not in link]
    assert [link for link in links if not (page.parent / link).exists()] == []
