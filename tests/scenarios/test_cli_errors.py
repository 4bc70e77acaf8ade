"""Bad input → message → exit code, line by line, by the installed command."""

# ruff: noqa: E501 (a case a line)

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.support.forked_command import forked_command
from tests.support.quiet_profile import quieten

COMMAND = str(Path(sys.executable).with_name("inferline-stream"))
NOBODY = "127.0.0.1:1"
QUICK = {"INFERLINE_CONNECT_TIMEOUT_S": "500ms"}


@dataclass(frozen=True)
class Bad:
    """One line of the table."""

    name: str
    arguments: str
    code: int
    message: str
    environment: dict[str, str] = field(default_factory=dict)


TABLE = [
    Bad("an SLO gate that does not hold", "run slow --duration 2s --no-ui --metrics-port 0 --gate", 6, "the SLO gate did not hold: 100.00% of"),
    Bad("no verb", "", 2, "Usage"),
    Bad("a verb that is not", "pln reviews", 2, "No such command 'pln'"),
    Bad("a verb nearly right", "statsu reviews", 2, "Did you mean 'status'"),
    Bad("a flag nearly right", "plan reviews --algoritm exact", 2, "--algorithm"),
    Bad("an argument missing", "plan", 2, "Missing argument"),
    Bad("an option missing", "status reviews", 2, "Missing option '--bootstrap-servers'"),
    Bad("a choice that is none", "plan reviews --output xml", 2, "'xml' is not one of"),
    Bad("a number that is none", "scale reviews parse many --bootstrap-servers x:1", 2, "'many': Input should be a valid integer"),
    Bad("a port that is none", "run reviews --metrics-port 99999", 2, "'99999': Input should be less than or equal to 65535"),
    Bad("a setting nearly right", "check reviews", 2, "did you mean INFERLINE_TUNER_STEP_S?", {"INFERLINE_TUNER_STEPS": "1"}),
    Bad("a flag's variable nearly right", "check reviews", 2, "did you mean INFERLINE_OUTPUT?", {"INFERLINE_OUTPTU": "json"}),
    Bad("a flag's variable with no choice", "check reviews", 2, "'xml' is not one of", {"INFERLINE_OUTPUT": "xml"}),
    Bad("a setting that is no time", "check reviews", 2, "'soon' is not a number of seconds, or a duration such as 250ms", {"INFERLINE_LEASE_S": "soon"}),
    Bad("a setting that is no number", "check reviews", 2, "INFERLINE_LEASE_S='nan' is not a number of seconds", {"INFERLINE_LEASE_S": "nan"}),
    Bad("a setting below nothing", "check reviews", 2, "INFERLINE_LEASE_S='-1' is not a number of seconds", {"INFERLINE_LEASE_S": "-1"}),
    Bad("a setting of Kafka that is not there", "check reviews", 2, "INFERLINE_KAFKA_CONFIG=nowhere cannot be read", {"INFERLINE_KAFKA_CONFIG": "nowhere"}),
    Bad("a file of Kafka's settings that is no text", "check reviews", 2, f"INFERLINE_KAFKA_CONFIG={sys.executable} cannot be read: 'utf-8' codec", {"INFERLINE_KAFKA_CONFIG": sys.executable}),
    Bad("an authority that is none", f"status reviews --bootstrap-servers {NOBODY}", 2, "Kafka's ssl.ca.location=reviews/topology.py cannot be used", {"INFERLINE_KAFKA_SSL_CA_LOCATION": "reviews/topology.py"}),
    Bad("a window after the calendar's end", f"scale reviews --at 9999-12-31 --reserve 2 --bootstrap-servers {NOBODY}", 2, "--at '9999-12-31'"),
    Bad("a period of nothing", "check reviews", 2, "INFERLINE_TUNER_STEP_S='0ms' must be above 0; it is 0.1 by default", {"INFERLINE_TUNER_STEP_S": "0ms"}),
    Bad("a dispatcher that is dead while its lease lasts", "check reviews", 2, "INFERLINE_DEAD_AFTER_S=2 must be above INFERLINE_LEASE_S=2", {"INFERLINE_DEAD_AFTER_S": "2s"}),
    Bad("a setting in a unit that is none", "check reviews", 2, "INFERLINE_LEASE_S='2 parsecs'", {"INFERLINE_LEASE_S": "2 parsecs"}),
    Bad("an SLO without a unit", "plan reviews --slo 150", 2, 'write a number and its unit'),
    Bad("an SLO of nothing", "plan reviews --slo 0ms", 2, "must be above 0"),
    Bad("a duration without a unit", "run reviews --duration soon", 2, "'soon' is not a duration"),
    Bad("a start that is none", "run reviews --start yesterday", 2, "'yesterday'"),
    Bad("arrivals that are not replayed", "run reviews --no-replay --arrivals reviews/arrivals.csv", 2, "leave one of them out"),
    Bad("an exporter that is none", "run reviews --tracing otpl", 2, "--tracing 'otpl': installed are"),
    Bad("a reserve that is held by nobody", "run reviews --reserve 2 --policy inferline", 2, "held by the default policy"),
    Bad("a reserve without end", "plan reviews --reserve inf", 2, "'inf': Input should be less than or equal to 20"),
    Bad("a seed below nothing", "plan reviews --seed -1", 2, "'-1': Input should be greater than or equal to 0"),
    Bad("a rehearsal in no time", "rules reviews --faster inf", 2, "'inf': Input should be less than or equal to 1000"),
    Bad("a name that no file has", f"check {'a' * 5000}", 3, "cannot be read (File name too long)"),
    Bad("a folder that no file system has", f"init {'a' * 5000}", 2, "File name too long; name another one"),
    Bad("a reserve below nothing", "run reviews --reserve -1", 2, "greater than or equal to 0"),
    Bad("a reserve in a replay of none", "replay reviews --reserve 2 --policy none", 2, "held by the default policy, not by none"),
    Bad("a reserve for what runs already", f"deploy reviews --reserve 2 --bootstrap-servers {NOBODY}", 2, "are for --target kubernetes"),
    Bad("a measuring time without a unit", "profile reviews --time 30", 2, "--time: '30' is not a duration"),
    Bad("a size in a unit that is none", "check reviews", 2, "INFERLINE_JOIN_BYTES='2 pages' is not a number of bytes, or a size such as 64MB", {"INFERLINE_JOIN_BYTES": "2 pages"}),
    Bad("a speed of nothing", "run reviews --speed-up 0", 2, "--speed-up 0 must be above 0"),
    Bad("an update time without a unit", f"top reviews --every 1 --bootstrap-servers {NOBODY}", 2, "--every: '1' is not a duration"),
    Bad("a rehearsal slower than life", "rules reviews --faster 0.5", 2, "'0.5': Input should be greater than or equal to 1"),
    Bad("a place that cannot be written", "rules reviews --save nowhere/rules.yml", 2, "another --save"),
    Bad("a cluster without an image", f"run reviews --on kubernetes --bootstrap-servers {NOBODY}", 2, "--on kubernetes needs --image"),
    Bad("an image for no cluster", "run reviews --image reviews:1", 2, "--image is for --on kubernetes"),
    Bad("an account for no cluster", "run reviews --service-account pods", 2, "--service-account is for --on kubernetes"),
    Bad("a gate for a run that goes on", f"run reviews --on kubernetes --image i --hand-over --gate --bootstrap-servers {NOBODY}", 2, "leave one of them out"),
    Bad("a cluster without a Kafka", "run reviews --on kubernetes", 2, "--on kubernetes needs --bootstrap-servers"),
    Bad("a cluster to measure on without a Kafka", "profile reviews --on ray", 2, "--on ray needs --bootstrap-servers"),
    Bad("a rehearsal on a cluster", f"plan reviews --on ray --rehearse --bootstrap-servers {NOBODY}", 2, "--rehearse runs the plan on this machine"),
    Bad("a cluster to deploy to", f"deploy reviews --target kubernetes --bootstrap-servers {NOBODY}", 2, "--target kubernetes needs --image"),
    Bad("a namespace for what runs already", f"deploy reviews --namespace ml --bootstrap-servers {NOBODY}", 2, "are for --target kubernetes"),
    Bad("a stage that is not", "scale reviews prase 2 --bootstrap-servers x:1", 2, "the pipeline has parse, study, rate"),
    Bad("replicas without number", f"scale reviews study {10**20} --bootstrap-servers x:1", 2, "less than or equal to 1000000"),
    Bad("a price without end", "scale reviews --price emulated-cpu=1e300 --bootstrap-servers x:1", 2, "dollars per hour, 0 to 1000000"),
    Bad("a time after the calendar's end", "pause reviews --for 99999999h --bootstrap-servers x:1", 2, "--for: '99999999h' is longer than 36500d"),
    Bad("a time for what lapses by itself", "scale reviews --notice node/x=2m --for 10m --bootstrap-servers x:1", 2, "--for '10m' has nothing to end"),
    *(
        Bad(f"the address {address!r}", f"status reviews --bootstrap-servers={address}", 2, "is not an address of Kafka; write host:port, e.g. localhost:9092")
        for address in ("localhost:port", "localhost:9092:", ":9092", "localhost:99999", "a..b:1", f"{'a' * 64}:1", f"localhost:{'9' * 5000}")
    ),
    Bad("a Kafka without a port that is not there", "status reviews --bootstrap-servers 255.255.255.255", 5, "Kafka at 255.255.255.255 does not answer", QUICK),
    Bad("a folder that is taken", "init reviews", 2, "holds topology.py"),
    Bad("a folder that is a file", "init reviews/topology.py/here", 2, "cannot write into the folder reviews/topology.py/here: Not a directory"),
    Bad("a topology that is not there", "check nothing/topology.py", 3, "nothing/topology.py: cannot be read"),
    Bad("a topology that is no Python", "check broken/syntax.py", 3, "broken/syntax.py:1: SyntaxError"),
    Bad("a topology that raises", "check broken/raises.py", 3, "broken/raises.py:2: ZeroDivisionError"),
    Bad("a topology without a pipeline", "check broken/empty.py", 3, "declares no pipeline; end it with"),
    Bad("a name that is not in it", "check broken/empty.py:other", 3, "no pipeline 'other'"),
    Bad("a stage that cannot be built", "check unbuilt", 3, "unbuilt/topology.py:62 in __init__: Study cannot be built: RuntimeError: no weights"),
    Bad("a stage that raises on every event", "profile raising", 3, "raising/topology.py:49 in helper: ZeroDivisionError: by nothing; stage 'parse' raised on 20 of 20"),
    Bad("an SLO that no plan meets", "plan reviews --slo 5ms", 4, "the smallest"),
    Bad("a Kafka that is not there", f"run reviews --no-ui --metrics-port 0 --bootstrap-servers {NOBODY}", 5, f"Kafka at {NOBODY} does not answer", QUICK),
    Bad("a Kafka that is not there to ask", f"status reviews --bootstrap-servers {NOBODY}", 5, f"Kafka at {NOBODY} does not answer", QUICK),
]  # fmt: skip


WAIT = """
import functools, pathlib, time
WAIT = functools.partial(time.sleep, 1.0 if pathlib.Path(__file__).with_name("slower").exists() else 0.0)


"""
"""Has become slower than when it was profiled, without a change of the code that profiles know it by."""


def called(folder: Path, *arguments: str) -> None:
    forked_command(*arguments, folder=folder).check_returncode()


def edited(folder: Path, name: str, edit: Callable[[str], str]) -> None:
    called(folder, "init", name)
    topology = folder / name / "topology.py"
    before = topology.read_text()
    topology.write_text(edit(before))
    assert topology.read_text() != before


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("errors")
    called(folder, "init", "reviews")
    edited(
        folder, "unbuilt",
        lambda text: text.replace("def __init__(self) -> None:\n", 'def __init__(self) -> None:\n        raise RuntimeError("no weights")\n'),
    )  # fmt: skip
    edited(
        folder, "raising",
        lambda text: text.replace("def parse(", 'def helper() -> None:\n    raise ZeroDivisionError("by nothing")\n\n\ndef parse(')
        .replace("    return [Parsed(", "    helper()\n    return [Parsed("),
    )  # fmt: skip
    edited(
        folder, "slow",
        lambda text: text.replace("def parse(", f'{WAIT}def parse(')
        .replace("    return [Parsed(", "    WAIT()\n    return [Parsed("),
    )  # fmt: skip
    edited(
        folder, "loading",
        lambda text: text.replace("def __init__(self) -> None:\n", "def __init__(self) -> None:\n        __import__('time').sleep(50.0)\n"),
    )  # fmt: skip
    called(folder, "profile", "slow")
    quieten(folder / "slow")
    (folder / "slow" / "slower").touch()
    (folder / "broken").mkdir()
    for name, text in {"syntax": "pipeline = (", "raises": "\n1 / 0", "empty": ""}.items():
        (folder / "broken" / f"{name}.py").write_text(text)
    return folder


@pytest.fixture(scope="module")
def outcomes(folder: Path) -> dict[str, subprocess.CompletedProcess[str]]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("INFERLINE_")}

    def call(bad: Bad) -> subprocess.CompletedProcess[str]:
        environment = {**clean, "COLUMNS": "200", **bad.environment}
        return forked_command(*bad.arguments.split(), folder=folder, environment=environment)

    with ThreadPoolExecutor(2) as pool:
        return dict(zip((bad.name for bad in TABLE), pool.map(call, TABLE), strict=True))  # the longest comes first


@pytest.mark.parametrize("bad", TABLE, ids=lambda bad: bad.name)
def test_bad_input_is_answered_with_what_is_wrong_and_its_exit_code(bad: Bad, outcomes: dict) -> None:
    done = outcomes[bad.name]
    assert done.returncode == bad.code, done.stderr
    reported = done.stdout + done.stderr if not bad.arguments else done.stderr
    assert bad.message in " ".join(reported.replace("│", " ").split())
    assert "Traceback" not in reported
    assert bad.code == 6 or not bad.arguments or done.stdout == ""


@pytest.mark.parametrize("verb", ["profile reviews --again --time 30s", "run loading --no-ui --metrics-port 0"])
@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_verb_that_is_stopped_leaves_nothing_behind_and_says_so(
    folder: Path, verb: str, number: int, code: int, word: str
) -> None:
    process = subprocess.Popen([COMMAND, *verb.split()], cwd=folder, stderr=subprocess.PIPE, text=True)
    try:
        wait_for(lambda: len(children(process.pid)) > 0)
        workers = children(process.pid)
        process.send_signal(number)
        _, err = process.communicate(timeout=20)
    finally:
        process.kill()
    assert (process.returncode, err.splitlines()[-1]) == (code, word)
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))


def test_a_second_ctrl_c_ends_a_run_that_would_drain_for_long(folder: Path) -> None:
    process = subprocess.Popen(
        [COMMAND, "run", "slow", "--no-ui", "--metrics-port", "0"], cwd=folder, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )  # fmt: skip
    try:
        assert process.stdout is not None
        for line in process.stdout:  # ends with the process, whatever happens
            if "replaying" in line:
                break
        time.sleep(2.0)  # more events than the stage takes in as many seconds
        workers = children(process.pid)
        process.send_signal(signal.SIGINT)
        assert any("draining" in line for line in process.stdout)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, err.splitlines()[-1]) == (130, "interrupted")
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))


def children(pid: int) -> list[int]:
    """Processes that a process has started and that still run."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        found += [int(child) for child in task.read_text().split()]
    return found


def wait_for(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, f"not within {timeout_s:g} s"
        time.sleep(0.05)
