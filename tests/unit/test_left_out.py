"""What tests/conftest.py leaves out where the machine lacks something, and what it never leaves out in CI."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

CONFTEST = (Path(__file__).parents[1] / "conftest.py").read_text()
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
