"""Every verb as it is installed: help, table, and the JSON document that the guide describes field by field."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import shutil
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import pytest
import typer.main
import yaml

import inferline_stream.cli as room
from inferline_stream.cli.main import app
from tests.support.forked_command import forked_command
from tests.support.quiet_profile import quieten

COMMAND = str(Path(sys.executable).with_name("inferline-stream"))
GROUP = typer.main.get_command(app)
VERBS = sorted(GROUP.commands)
SUB_COMMANDS = [f"{name} {of}" for name, group in GROUP.commands.items() for of in getattr(group, "commands", ())]
CALLS = {
    "check": ["check", "reviews"],
    "check --show-config": ["check", "reviews", "--show-config"],
    "profile": ["profile", "reviews"],
    "plan": ["plan", "reviews"],
    "replay": ["replay", "reviews", "--plan", "plan.json"],
    "compare": ["compare", "reviews", "--plan", "plan.json", "--policies", "default,inferline"],
    "topics": ["topics", "reviews"],
    "rules": ["rules", "reviews"],
    "diff": ["diff", "plan.json", "plan.json"],
    "sandbox check": ["sandbox", "check"],
    "version": ["version"],
}
OF_A_FINISHED_RUN = {
    "explain": ["explain", "reviews"],
    "report": ["report", "reviews", "--save", "report.html"],
    "trust": ["trust", "reviews"],
}


def call(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("INFERLINE_")}
    return forked_command(*arguments, folder=folder, environment={**clean, **environment})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The starter topology in `reviews`, profiled."""
    folder = tmp_path_factory.mktemp("documents")
    written = call(folder, "init", "reviews")
    assert written.returncode == 0, written.stderr
    assert "Next: inferline-stream run reviews" in written.stdout
    profiled = call(folder, "profile", "reviews")
    assert profiled.returncode == 0, profiled.stderr
    quieten(folder / "reviews")
    planned = call(folder, "plan", "reviews", "--save", "plan.json")
    assert planned.returncode == 0, planned.stderr
    return folder


def documented(verb: str) -> dict[str, bool]:
    """Field → whether it may be missing, as docs/reference/json-output.md says."""
    text = (Path(room.__file__).parents[2] / "docs/reference/json-output.md").read_text()
    (section,) = re.findall(rf"^## {re.escape(verb)}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    return {name: may == "may" for name, may in re.findall(r"^\| `([^`]+)` \| (may)?", section, re.MULTILINE)}


def fields(value: object, maps: set[str], path: str = "") -> Iterator[str]:
    """Paths of every field of a document; maps end the path."""
    if isinstance(value, dict) and f"{path}{{}}" in maps:
        yield f"{path}{{}}"
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from fields(inner, maps, f"{path}.{name}" if path else name)
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        for inner in value:
            yield from fields(inner, maps, f"{path}[]")
    else:
        yield f"{path}[]" if isinstance(value, list) else path


def assert_documented(verb: str, document: object) -> None:
    reported = documented(verb)
    found = set(fields(document, {name for name in reported if name.endswith("{}")}))
    # An empty list has no fields to show.
    lists = {name[: dot.start()] for name in reported for dot in re.finditer(r"(?<=\[\])\.", name)}
    assert found - reported.keys() - lists == set()
    assert {name for name, may in reported.items() if not may} - found == set()


Printed = dict[str, tuple[subprocess.CompletedProcess[str], subprocess.CompletedProcess[str]]]
"""By verb: JSON, and what is for people."""


def printed(folder: Path, calls: dict[str, list[str]]) -> Printed:
    def both(arguments: list[str]) -> tuple[subprocess.CompletedProcess[str], subprocess.CompletedProcess[str]]:
        reported = call(folder, *arguments, "--output", "json")
        return reported, call(folder, *arguments, "--output", "table", NO_COLOR="1", COLUMNS="100")

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(calls, pool.map(both, calls.values()), strict=True))


@pytest.fixture(scope="module")
def verbs(folder: Path) -> Printed:
    return printed(folder, CALLS)


@pytest.mark.parametrize("verb", CALLS)
def test_a_verb_prints_the_documented_json_and_a_table_for_people(verb: str, verbs: Printed) -> None:
    done, shown = verbs[verb]
    expected = (0, 3) if verb == "sandbox check" else (0,)  # as the kernel is
    assert done.returncode in expected, done.stderr
    assert_documented(verb, json.loads(done.stdout))
    assert_for_people(shown, expected, sentences=verb in ("topics", "sandbox check"))


def test_a_rule_that_is_best_as_it_comes_stands_once_in_the_table(folder: Path) -> None:
    """With tuning it ran twice, and two equal rows said the same of each rule."""
    asked = ("compare", "reviews", "--plan", "plan.json", "--policies", "ds2")
    found = json.loads(call(folder, *asked, "--output", "json").stdout)["rows"]
    shown = call(folder, *asked, NO_COLOR="1", COLUMNS="200").stdout
    as_they_come = sum(row["setting"] == "the defaults" for row in found)
    assert shown.count("ds2") == len(found) - as_they_come
    assert shown.count("default, also tuned") == as_they_come, "none, where the profile has a better setting"


def assert_for_people(
    shown: subprocess.CompletedProcess[str], codes: tuple[int, ...] = (0,), *, sentences: bool = False
) -> None:
    """No JSON, no colours where they are not wanted, no wider than the terminal unless it is sentences."""
    assert shown.returncode in codes, shown.stderr
    assert not shown.stdout.startswith(("{", "["))
    assert "\x1b" not in shown.stdout
    assert sentences or all(len(line) <= 100 for line in shown.stdout.splitlines()), shown.stdout


@pytest.fixture(scope="module")
def afterwards(folder: Path, traced: object) -> Printed:
    return printed(folder, OF_A_FINISHED_RUN)


@pytest.mark.parametrize("verb", OF_A_FINISHED_RUN)
def test_a_finished_run_is_reported_in_the_documented_json_and_for_people(verb: str, afterwards: Printed) -> None:
    done, shown = afterwards[verb]
    assert done.returncode == 0, done.stderr
    assert_documented(verb, json.loads(done.stdout))
    assert_for_people(shown, sentences=True)


def test_init_tells_what_it_has_written(folder: Path) -> None:
    document = json.loads(call(folder, "init", "fresh", "--output", "json").stdout)
    assert_documented("init", document)
    assert all((folder / file).exists() for file in [document["topology"], *document["files"]])


@pytest.fixture(scope="module")
def traced(folder: Path) -> subprocess.CompletedProcess[str]:
    """A run that logs JSON lines, and whose replicas write a span per batch into their logs."""
    short = ["--duration", "3s", "--no-ui", "--metrics-port", "0", "--tracing", "console"]
    done = call(folder, "run", "reviews", *short, "--output", "json", INFERLINE_LOG_FORMAT="json")
    assert done.returncode == 0, done.stderr
    return done


def test_a_run_ends_with_the_documented_json(traced: subprocess.CompletedProcess[str]) -> None:
    document = json.loads(traced.stdout)
    assert_documented("run", document)
    assert document["lost"] == 0


def test_a_run_traces_each_batch_and_links_it_to_the_batches_that_caused_it(folder: Path, traced: object) -> None:
    batches: dict[str, list[dict]] = {}
    for log in (folder / "reviews" / ".inferline" / "logs" / "reviews").glob("*.log"):
        spans = [json.loads(text) for text in re.findall(r"^\{$.*?^\}$", log.read_text(), re.MULTILINE | re.DOTALL)]
        batches.setdefault(log.name.split("-")[0], []).extend(spans)
    ids = {stage: {span["context"]["span_id"] for span in spans} for stage, spans in batches.items()}
    causes = {
        stage: {link["context"]["span_id"] for s in spans for link in s["links"]} for stage, spans in batches.items()
    }
    assert ids["parse"]
    assert causes["parse"] == set()  # the replay does not trace
    assert causes["study"] <= ids["parse"]
    assert causes["rate"] & ids["parse"]
    assert causes["rate"] <= ids["parse"] | ids["study"]


def test_json_log_lines_are_all_that_standard_error_holds(traced: subprocess.CompletedProcess[str]) -> None:
    lines = [json.loads(line) for line in traced.stderr.splitlines()]
    assert {"time", "level", "logger", "message"} <= set.intersection(*(set(line) for line in lines))
    assert any(line["message"].startswith("slot ") for line in lines)


def test_a_run_says_how_many_of_its_replicas_are_ready_while_they_start(
    traced: subprocess.CompletedProcess[str],
) -> None:
    said = [json.loads(line)["message"] for line in traced.stderr.splitlines()]
    assert [text for text in said if re.match(r"starting replicas: \d+ of \d+", text)], said


def test_long_work_shows_on_a_terminal_how_much_time_is_left_and_nothing_elsewhere(folder: Path) -> None:
    long = [*CALLS["replay"], "--output", "json"]
    assert call(folder, *long).stderr == ""
    code, out, shown = on_a_terminal(folder, "stderr", *long)
    assert (code, json.loads(out)["pipeline"]) == (0, "reviews")
    assert re.search(r"replaying [━╸╺ ]+ \d:\d\d:\d\d left \d:\d\d:\d\d", plain(shown)), plain(shown)
    assert shown.rstrip().endswith("\x1b[2K"), "the bar is taken away in the end"


def on_a_terminal(folder: Path, stream: Literal["stdout", "stderr"], *arguments: str) -> tuple[int, str, str]:
    """Run a verb one of whose streams is a terminal of 100 columns: exit code, the other stream, what was shown."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 40, 100, 0, 0))
    other = "stderr" if stream == "stdout" else "stdout"
    with open(theirs, "wb", buffering=0) as terminal, open(ours, "rb", buffering=0) as screen:
        streams: dict[str, Any] = {stream: terminal, other: subprocess.PIPE}
        verb = subprocess.Popen([COMMAND, *arguments], cwd=folder, text=True, **streams)
        shown = b""
        while verb.poll() is None or select.select([screen], [], [], 0)[0]:
            if select.select([screen], [], [], 0.1)[0]:  # what nobody reads would hold it up
                shown += screen.read(65536)
        said, _ = verb.communicate() if stream == "stderr" else verb.communicate()[::-1]
    return verb.returncode, said, shown.decode()


def plain(shown: str) -> str:
    """What a terminal was sent, without its control sequences."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)


@pytest.fixture(scope="module")
def helps(folder: Path) -> dict[str, subprocess.CompletedProcess[str]]:
    with ThreadPoolExecutor(2) as pool:
        every = [*VERBS, *SUB_COMMANDS]
        done = pool.map(lambda verb: call(folder, *verb.split(), "--help", COLUMNS="100", NO_COLOR="1"), every)
        return dict(zip(every, done, strict=True))


@pytest.mark.parametrize("verb", [*VERBS, *SUB_COMMANDS])
def test_help_says_what_a_verb_does_and_gives_one_example(verb: str, helps: dict) -> None:
    done = helps[verb]
    assert (done.returncode, done.stderr) == (0, "")
    assert f"inferline-stream {verb}" in done.stdout
    example = re.search(r"Example: (inferline-stream .+)", " ".join(done.stdout.split()))
    assert example is not None
    assert example[1].removeprefix("inferline-stream ").startswith(verb)
    named = re.findall(r"--[a-z][a-z-]*", example[1])
    assert [flag for flag in named if flag not in done.stdout.replace(example[1], "")] == []


def test_every_verb_is_listed_and_a_shell_can_complete_them(folder: Path) -> None:
    listed = call(folder, "--help").stdout
    assert [verb for verb in VERBS if not re.search(rf"│ {verb} ", listed)] == []
    completing = {"_INFERLINE_STREAM_COMPLETE": "complete_bash", "COMP_WORDS": "inferline-stream re", "COMP_CWORD": "1"}
    assert sorted(call(folder, **completing).stdout.split()) == [verb for verb in VERBS if verb.startswith("re")]


PULL_REQUESTS = Path(room.__file__).parents[2] / "docs/how-to/pull-requests.md"


@pytest.fixture(scope="module")
def repository(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository whose `reviews` holds the plan in force, with one replica more; it is its own remote."""
    at = tmp_path_factory.mktemp("repository")
    shutil.copytree(folder / "reviews", at / "reviews")
    plan = json.loads((folder / "plan.json").read_text())
    plan["plan"]["allocations"]["study"][0]["replicas"] += 1
    (at / "reviews/plan.json").write_text(json.dumps(plan))
    who = ("-c", "user.name=a", "-c", "user.email=a@b")
    for step in (
        ("init", "-qb", "main"),
        ("add", "."),
        (*who, "commit", "-qm", "one"),
        ("remote", "add", "origin", "."),
    ):
        subprocess.run(["git", *step], cwd=at, check=True)
    return at


def steps_of(service: str) -> str:
    """What the page's job runs for a pull request, as one script: without what installs and what comments."""
    github, gitlab = (
        yaml.safe_load(text) for text in re.findall(r"^```yaml\n(.*?)^```", PULL_REQUESTS.read_text(), re.M | re.S)
    )
    if service == "GitLab":
        return "\n".join(gitlab["plan"]["script"])
    (step,) = (each for each in github["jobs"]["plan"]["steps"] if each.get("name") == "Plan")
    assert step["shell"] == "bash"  # by which GitHub sets pipefail
    return step["run"]


@pytest.mark.parametrize(("service", "budget", "code"), [("GitHub", 500, 0), ("GitHub", 1, 6), ("GitLab", 1, 6)])
def test_a_pull_request_shows_what_its_plan_costs(service, budget, code, folder: Path, repository: Path) -> None:
    script = steps_of(service)
    assert script.count("--budget 500") == 1
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    settings = {**os.environ, "PATH": path, "BASE": "main", "CI_MERGE_REQUEST_TARGET_BRANCH_NAME": "main"}
    script = script.replace("--budget 500", f"--budget {budget}")
    ran = subprocess.run(
        ["bash", "-eo", "pipefail", "-c", script],
        cwd=repository,
        env=settings,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == code, ran.stderr
    changes = (repository / "changes.md").read_text()
    planned = json.loads((folder / "plan.json").read_text())["plan"]
    held = {stage: each[0]["replicas"] for stage, each in planned["allocations"].items()}
    cost, total = planned["cost_per_hour"] * 730, sum(held.values())
    price = cost / total  # of one replica
    assert changes.startswith(f"### `reviews`: ${cost:,.2f} a month (−${price:.2f}, {-1 / (total + 1):.1%})\n")
    kept, fewer = held["parse"], held["study"]
    assert f"\n| parse | {kept} × emulated-cpu, batches up to 8 | the same | $0.00 |\n" in changes
    assert re.search(
        rf"^\| study \| {fewer + 1} × emulated-cpu, .+ \| \*\*{fewer} × emulated-cpu, .+\*\* \| −\$", changes, re.M
    )
    over = f"**over it by ${cost - 1:,.2f}**" if code else f"${500 - cost:,.2f} below it"
    assert changes.endswith(f"Budget: ${budget:.2f} a month, {over}.\n")
    assert ("which is more than --budget $1.00" in ran.stderr) == bool(code)


@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [
        (["plan", "reviews", "--markdown"], "give --against"),
        (["plan", "reviews", "--against", "plan.json", "--output", "json"], "leave --output json out"),
        (["diff", "plan.json", "plan.json", "--markdown", "--output", "json"], "leave one of them out"),
    ],
)
def test_two_ways_to_print_exclude_each_other(arguments, remedy, folder: Path) -> None:
    ran = call(folder, *arguments)
    assert ran.returncode == 2
    assert remedy in ran.stderr
