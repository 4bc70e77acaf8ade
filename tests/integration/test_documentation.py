"""What README.md and the guides say can be done: every command in them runs, every link leads somewhere."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.benchmarks import swing
from tests.support.forked_command import forked_command
from tests.support.quiet_profile import quieten

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = sorted((*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")))
LINKED = sorted((*PAGES, *(page for top in (".github", "tests", "topologies") for page in (ROOT / top).rglob("*.md"))))
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)#]*)(?:#([^)]*))?\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
COMPARISON = ROOT / "docs/explanation/comparison.md"
COMPARED = re.compile(
    r"^\| ([^|]+) \| ([^|]+) \| \$([\d.]+)/h ± ([\d.]+) \| ([\d.]+) % ± ([\d.]+) % \| ([\d.]+) % \| (\d+) \| (\d*) \|",
    re.MULTILINE,
)
"""Its rows: system, setting, $/h and its interval, misses and their interval, the worst draw's, draws kept, won."""
BRIEFLY_COMPARED = re.compile(r"^\| ([^|]+) \| ([^|]+) \| \$([\d.]+)/h \| ([\d.]+) % \| (\d+) of 10 \|", re.MULTILINE)
"""The same in README.md, without the intervals."""
TUTORIAL = ROOT / "docs/tutorial/first-pipeline.md"
"""`test_newcomers_path` walks by its commands."""
SHELL = re.compile(r"[|&;<>$`\\*?#~\n]")
"""What a shell would take for more than words of one command."""
DEADLINE_S = 300
KAFKA = "127.0.0.1:9092"
"""As pages write it; the pages' pipeline is then under way on an embedded broker, whose address takes its place."""
BY_CI = 3
"""Blocks of README.md: CI calls those that install and test, and a test of its own runs the main example."""


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, language: str) -> list[str]:
    return [text for found, text in BLOCK.findall(page.read_text()) if found == language]


def commands_of(page: Path) -> list[str]:
    return blocks(page, "sh")[BY_CI if page == README else 0 :]


WITH_COMMANDS = [page for page in PAGES if commands_of(page) and page != TUTORIAL]


def environment() -> dict[str, str]:
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "COLUMNS": "200"}


def run(commands: str, folder: Path) -> None:
    """Run lines as a shell does. Calls of our command are forked: starting it takes longer than most of them."""
    settings = environment()
    whole = re.search(r"\\$|^cd ", commands, re.MULTILINE)  # a line that another one needs
    for line in [commands] if whole else commands.splitlines():
        program, *arguments = [line] if SHELL.search(line) else shlex.split(line)
        if program == "export":
            settings |= dict(argument.split("=", 1) for argument in arguments)
            continue
        if program == "inferline-stream":
            ran = forked_command(*arguments, folder=folder, environment=settings, timeout_s=DEADLINE_S)
        else:
            ran = subprocess.run(
                ["bash", "-eu", "-c", line],
                cwd=folder, env=settings, capture_output=True, text=True, timeout=DEADLINE_S, check=False,
            )  # fmt: skip
        assert ran.returncode == 0, f"{line}\n{ran.stdout}\n{ran.stderr}"


@contextmanager
def broker() -> Iterator[str]:
    command = [sys.executable, "-m", "inferline_stream.embedded_broker", "--port", "0", "--output", "json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield json.loads(process.stdout.readline())["bootstrap_servers"].removeprefix("PLAINTEXT://")
        finally:
            process.terminate()


@contextmanager
def under_way(folder: Path, servers: str) -> Iterator[None]:
    """The starter topology, running with a fifth of its sample replayed again and again, until it can be looked at."""
    arrivals = folder / "long.csv"
    times = (folder / "arrivals.csv").read_text().split()[1::5]
    arrivals.write_text("arrival_s\n" + "".join(f"{60 * n + float(t):.4f}\n" for n in range(10) for t in times))
    command = ["inferline-stream", "run", ".", "--bootstrap-servers", servers, "--replay", "--arrivals", arrivals.name]
    with (folder / "run.log").open("w") as log:
        started = subprocess.Popen(
            [*command, "--no-ui", "--metrics-port", "0"], cwd=folder, env=environment(), stdout=log, stderr=log
        )
        try:
            deadline_s = time.monotonic() + DEADLINE_S
            while "replaying" not in (folder / "run.log").read_text():
                assert started.poll() is None, (folder / "run.log").read_text()
                assert time.monotonic() < deadline_s, f"not under way within {DEADLINE_S} s"
                time.sleep(0.2)
            yield
        finally:
            for _ in range(2):  # an orderly end, and one at once
                started.terminate()
                time.sleep(0.3)
            try:
                started.wait(30)
            finally:
                started.kill()


@pytest.fixture(scope="module")
def starter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The starter topology, profiled."""
    folder = tmp_path_factory.mktemp("starter")
    run("inferline-stream init here && inferline-stream profile here", folder)
    quieten(folder / "here")
    return folder / "here"


def follow(pages: Sequence[Path], folder: Path, starter: Path) -> None:
    """Run pages' commands in a folder, one after the other, beside a pipeline that is under way if they need one."""
    folder = shutil.copytree(starter, folder / "here")
    with ExitStack() as stack:
        servers = KAFKA
        if any(map(needs_kafka, pages)):
            servers = stack.enter_context(broker())
            quieten(folder, servers)
            stack.enter_context(under_way(folder, servers))
        for page in pages:
            if whole := [code for code in blocks(page, "python") if code.startswith("from ")]:
                (folder / "topology.py").write_text(whole[0])
            for text in commands_of(page):
                run(text.replace(KAFKA, servers), folder)


def needs_kafka(page: Path) -> bool:
    return any(KAFKA in text for text in commands_of(page))


@pytest.fixture(scope="module")
def followed(starter: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Future[None]]:
    """What became of each page's commands. Two are followed at a time, since commands wait more than they work.

    Those that need a pipeline under way share one.
    """
    together = [page for page in WITH_COMMANDS if needs_kafka(page)]
    with ThreadPoolExecutor(2) as pool:
        found = {}
        for pages in (together, *([page] for page in WITH_COMMANDS if page not in together)):
            found |= dict.fromkeys(pages, pool.submit(follow, pages, tmp_path_factory.mktemp("page"), starter))
        return found


@pytest.mark.parametrize("page", WITH_COMMANDS, ids=name_of)
def test_every_command_of_a_page_runs_as_it_stands(page: Path, followed: dict[Path, Future[None]]) -> None:
    followed[page].result()


def anchors(page: Path) -> set[str]:
    """The addresses of a page's headings, as repository hosts and the site make them."""
    headings = HEADING.findall(FENCED.sub("", page.read_text()))
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", LINKED, ids=name_of)
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    links = [link for link in LINK.findall(page.read_text()) if "://" not in link[0]]
    nowhere = [file for file, _ in links if not (page.parent / file).exists()]
    targets = [(page.parent / file if file else page, anchor) for file, anchor in links if anchor]
    nowhere += [f"{file}#{anchor}" for file, anchor in targets if file.exists() and anchor not in anchors(file)]
    assert nowhere == []


def test_the_readme_names_every_verb_and_where_the_guides_begin() -> None:
    from inferline_stream.cli.main import app

    text = README.read_text()
    verbs = [command.name or command.callback.__name__ for command in app.registered_commands if command.callback]
    groups = [group.name for group in app.registered_groups if group.name]
    assert len(verbs) > 15
    assert [verb for verb in (*verbs, *groups) if f"`{verb}" not in text] == []
    assert "(docs/index.md)" in text
    assert len(text.splitlines()) <= 300


def test_the_comparison_has_the_figures_that_its_benchmark_finds() -> None:
    """Of the first of ten draws: what changes the others' figures changes its as well, and ten take a minute of a core.

    The settings of tuned rules are taken from the page, too: finding them again takes minutes.
    """
    table, comment = COMPARISON.read_text().split(swing.FIRST_DRAW)
    stated = COMPARED.findall(comment)
    found = COMPARED.findall("\n".join(swing.table_rows(swing.figures(1, swing.settings_in(table), hindsight=False))))
    assert len(found) > 15
    rules = [row[:2] for row in COMPARED.findall(table) if row[0] != swing.SYSTEMS["clairvoyant"]]
    assert rules == [row[:2] for row in stated] == [row[:2] for row in found]
    for row, again in zip(stated, found, strict=True):
        # Nothing here is random: a last digit may be rounded the other way.
        assert figures(row[2:4]) == pytest.approx(figures(again[2:4]), abs=0.0015), row
        assert figures(row[4:7]) == pytest.approx(figures(again[4:7]), abs=0.02), row
        assert row[7:] == again[7:], row


def figures(cells: Sequence[str]) -> list[float]:
    return [float(cell) for cell in cells]


def test_the_readmes_comparison_is_part_of_the_whole() -> None:
    whole = {
        (system, setting.split(":")[0] + ", on our pool" * setting.endswith(", on our pool"), cost, misses, kept)
        for system, setting, cost, _, misses, _, _, kept, _ in COMPARED.findall(
            COMPARISON.read_text().split(swing.FIRST_DRAW)[0]
        )
    }
    stated = set(BRIEFLY_COMPARED.findall(README.read_text()))
    assert stated <= whole
    assert {system for system, *_ in stated} == set(swing.SYSTEMS.values())
    tuned = {system for system, setting, *_ in stated if setting == "tuned"}
    assert tuned == {swing.SYSTEMS[name] for name in ("keda", "flink-fast", "ray", "seldon")}
