import gc
import os
import signal
import subprocess
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis.internal.conjecture import providers

from tests.support.hypothesis_profiles import load_few

pytest_plugins = ["inferline_stream.testing.fixtures"]

load_few()
# Constants of the modules that a process happened to import before would enter its examples.
providers._get_local_constants = lambda: providers._local_constants

# A shell has what runs in its background ignore Ctrl-C, and commands that tests start and interrupt would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Tests start hundreds of processes: each would compile the package again, and each that runs tests all of those.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

TESTS = Path(__file__).parent
ELSEWHERE = pytest.StashKey[dict[str, int]]()
LACKING = pytest.StashKey[str]()

SLOW = ("integration", "scenarios", "contracts", "laws")
"""Rooms of tests that need more than Python, wait for processes, or compute for long.

They run where they are named, or with ``--everything``. They come first: no long file is left for the end.
"""
FIRST = "test_demo.py"
"""The longest file of tests/unit. What it runs compiles the kernels, which rooms that come later find compiled."""
ASKED = "python -m pytest --everything"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--everything", action="store_true", help="run the tests with Kafka, browsers and clusters, too")


def left_out(room: str, config: pytest.Config) -> bool:
    """Whether a room is left out: a slow one that neither an argument nor ``--everything`` asks for."""
    named = [(config.invocation_params.dir / argument.split("::")[0]).resolve() for argument in config.args]
    return room in SLOW and not config.option.everything and not any(TESTS / room in (n, *n.parents) for n in named)


@pytest.fixture(scope="session", autouse=True)
def _doubles(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let processes that tests start find `tests.support.doubles` by their names alone.

    It is a folder of installed packages by its name: a sealed dispatcher may read no other code.
    """
    folder = tmp_path_factory.mktemp("doubles") / "site-packages"
    folder.symlink_to(TESTS / "support" / "doubles")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
        yield


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Return how many processes run the tests: none beside pytest's own where one file is asked for.

    Tests of slow rooms wait more than they compute: for them there are two more processes than cores, which share one
    Apache Kafka, and one that computes in what time they leave (`Scheduling`).
    """
    if len(config.args) == 1 and config.args[0].split("::")[0].endswith(".py"):
        return 0
    more = 0 if all(left_out(room, config) for room in SLOW) else 3
    return min(len(os.sched_getaffinity(0)) + more, 10)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from tests.support.scheduling import Scheduling

    return Scheduling(config, log) if config.option.dist == "loadfile" else None


def pytest_sessionstart(session: pytest.Session) -> None:
    if worker := getattr(session.config, "workerinput", None):
        from tests.support.scheduling import is_last, yield_to_others

        if is_last(worker["workerid"], worker["workercount"]):
            yield_to_others()


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, Any, Any]:
    """Collect without a look at garbage: of what is collected nothing goes, and later looks need not pass it either."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Read no file of a room that is left out: that alone takes seconds of each process."""
    room = collection_path.relative_to(TESTS).parts[0] if TESTS in collection_path.parents else ""
    return True if left_out(room, config) else None


@pytest.hookimpl(tryfirst=True)  # before -m looks at marks
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Order rooms; leave out what needs what this machine has not, which the summary says.

    With CI=true, what every machine of CI has to have is not left out: its tests fail.
    """
    from inferline_stream.settings import surroundings
    from tests.support.scheduling import ON_RAY

    rooms = {item: item.path.relative_to(TESTS).parts[0] for item in items}
    items.sort(
        key=lambda item: (
            item.nodeid.split("::")[0] not in ON_RAY,  # what takes longest in one process
            SLOW.index(rooms[item]) if rooms[item] in SLOW else len(SLOW),
            item.path.name != FIRST,
        )
    )
    missing = {mark: why for mark, has in NEEDS.items() if (why := has())}
    wanted = NEEDS.keys() - CI_MAY_LACK if surroundings().ci else set()
    lacking: dict[str, int] = {}
    for item in list(items):
        for mark, why in missing.items():
            if item.get_closest_marker(mark) is None:
                continue
            if mark in wanted:
                item.stash[LACKING] = why
                continue
            items.remove(item)
            lacking[why] = lacking.get(why, 0) + 1
            break
    config.stash[ELSEWHERE] = lacking
    if (output := getattr(config, "workeroutput", None)) is not None:
        output["lacking"] = lacking


def pytest_runtest_setup(item: pytest.Item) -> None:
    if (why := item.stash.get(LACKING, None)) is not None:
        pytest.fail(f"CI=true, so this test is never left out: {why}", pytrace=False)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take over what a process of pytest-xdist has left out: all leave out the same."""
    lacking = getattr(node, "workeroutput", {}).get("lacking", {})
    node.config.stash.setdefault(ELSEWHERE, {}).update(lacking)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for why, count in config.stash.get(ELSEWHERE, {}).items():
        terminalreporter.line(f"Left out: {count} test{'s' if count > 1 else ''}, {why}")


@pytest.hookimpl(wrapper=True, tryfirst=True)  # after the summary, as the last line
def pytest_sessionfinish(session: pytest.Session) -> Generator[None, Any, Any]:
    """Say how many tests the quick suite leaves out; fail where they cannot even be read."""
    done = yield
    config, reporter = session.config, session.config.pluginmanager.get_plugin("terminalreporter")
    if config.args_source != pytest.Config.ArgsSource.TESTPATHS or config.option.everything or not reporter:
        return done
    rooms = [str(TESTS / room) for room in SLOW]
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "--collect-only", "-p", "no:cacheprovider", *rooms]
    found = subprocess.run(command, cwd=config.rootpath, capture_output=True, text=True, check=False)
    count = sum("::" in line for line in found.stdout.splitlines())
    if found.returncode:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        reporter.write(found.stdout + found.stderr)
    reporter.line(f"{count:,} tests with Kafka, browsers and clusters were not run: `{ASKED}`")
    return done


def no_gpu() -> str:
    from inferline_stream.actuators.nvml import devices

    if not devices():
        return "no NVIDIA GPU answers here"
    import onnxruntime

    has = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    return "" if has else "this onnxruntime has no CUDA: pip install onnxruntime-gpu"


def no_engine() -> str:
    from inferline_stream.settings import surroundings
    from inferline_stream.testing.kafka import container_engine

    return "" if container_engine(surroundings()) else "no Docker or podman socket answers here"


def memory_group() -> tuple[Path | None, bool]:
    """A control group in which groups with a limit of memory can be made, and whether it is of version 2.

    Also one that a service manager has put this process into: tests leave nothing behind in it.
    """
    from inferline_stream.isolation.limits import own_group

    folder, unified = own_group("memory")
    if folder is None and not unified:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
        paths = [line.split(":", 2)[2] for line in lines if line.split(":")[1] == "memory"]
        folder = Path("/sys/fs/cgroup/memory") / paths[0].lstrip("/") if paths else None
    return (folder if folder is not None and os.access(folder, os.W_OK) else None), unified


def no_groups() -> str:
    return "" if memory_group()[0] else "no control group with a limit of memory can be made here"


NEEDS = {"gpu": no_gpu, "engine": no_engine, "groups": no_groups}
CI_MAY_LACK = {"gpu", "engine"}
"""Marks of tests that CI may leave out: its machines have no GPU, and run in a container without an engine's socket."""
