"""What tests/conftest.py leaves out: slow rooms of the quick suite, and what the machine lacks; never that in CI."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.conftest import SLOW

pytest_plugins = ["pytester"]

ROOT = Path(__file__).parents[2]
CONFTEST = (ROOT / "tests/conftest.py").read_text()
LACKS_ALL = """
NEEDS = {mark: lambda mark=mark: f"no {mark} here" for mark in NEEDS}
"""
INI = """
[pytest]
asyncio_default_fixture_loop_scope = function
markers =
    gpu
    engine
    groups
"""
TESTS = """
import pytest

@pytest.mark.gpu
def test_on_a_gpu(): ...

@pytest.mark.engine
def test_on_an_engine(): ...

@pytest.mark.groups
def test_in_groups(): ...

def test_anywhere(): ...
"""


@pytest.fixture
def suite(pytester: pytest.Pytester) -> pytest.Pytester:
    """Four tests, three of which need what is not there."""
    pytester.makeconftest(CONFTEST + LACKS_ALL)
    pytester.makepyfile(TESTS)
    pytester.makeini(INI)
    return pytester


def test_what_the_machine_lacks_is_left_out_and_said(suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    done = suite.runpytest_inprocess()
    done.assert_outcomes(passed=1)
    done.stdout.fnmatch_lines([f"Left out: 1 test, no {mark} here" for mark in ("gpu", "engine", "groups")])


def test_in_ci_only_gpus_and_engines_may_lack(suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    done = suite.runpytest_inprocess()
    done.assert_outcomes(passed=1, errors=1)
    done.stdout.fnmatch_lines(["CI=true, so this test is never left out: no groups here"])
    assert [line for line in done.outlines if line.startswith("Left out")] == [
        f"Left out: 1 test, no {mark} here" for mark in ("gpu", "engine")
    ]


@pytest.fixture
def rooms(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """One test in a quick room, and two in each slow one."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    pytester.makeini(INI + "testpaths = suite\n")
    for room, count in {"unit": 1, **dict.fromkeys(SLOW, 2)}.items():
        (folder := pytester.path / "suite" / room).mkdir(parents=True)
        (folder / f"test_{room}.py").write_text("".join(f"def test_{number}(): ...\n\n" for number in range(count)))
    (pytester.path / "suite/conftest.py").write_text(CONFTEST)
    return pytester


def test_the_quick_suite_says_in_its_last_line_how_many_tests_were_not_run(rooms: pytest.Pytester) -> None:
    done = rooms.runpytest_inprocess("-n", "0")
    done.assert_outcomes(passed=1)
    assert done.outlines[-1] == (
        "8 tests with Kafka, browsers and clusters were not run: `python -m pytest --everything`"
    )


def test_what_the_quick_suite_leaves_out_has_to_be_readable_nevertheless(rooms: pytest.Pytester) -> None:
    (rooms.path / "suite/laws/test_laws.py").write_text("import what_there_is_not\n")
    done = rooms.runpytest_inprocess("-n", "0")
    assert done.ret == pytest.ExitCode.TESTS_FAILED
    done.stdout.fnmatch_lines(["*No module named 'what_there_is_not'*"])


@pytest.mark.parametrize(
    ("arguments", "passed"),
    [
        (["--everything"], 9),
        (["suite/laws"], 2),
        (["suite/laws/test_laws.py::test_1", "suite/unit"], 2),
        (["suite"], 1),
    ],
    ids=["everything", "a room", "a test", "the folder"],
)
def test_slow_rooms_run_where_they_are_named(rooms: pytest.Pytester, arguments: list[str], passed: int) -> None:
    done = rooms.runpytest_inprocess("-n", "0", *arguments)
    done.assert_outcomes(passed=passed)
    assert "were not run" not in done.outlines[-1]


def test_ci_runs_the_quick_suite_and_each_slow_room_once() -> None:
    script = (ROOT / ".ci/run").read_text()
    (named,) = re.findall(r"-m pytest ((?:tests/\w+ ?)+)", script)
    assert sorted(named.split()) == sorted(f"tests/{room}" for room in SLOW)
    assert len(re.findall(r"\breadme test\b", script)) == 1
