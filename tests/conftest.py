import os

import pytest
from hypothesis import settings

pytest_plugins = ["inferline_stream.testing.fixtures"]

# The same examples on every run, and no deadline: machines are noisy, and a test that fails must fail again.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")

ELSEWHERE = pytest.StashKey[dict[str, int]]()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what needs what this machine has not; the summary says so."""
    missing = {mark: why for mark, has in NEEDS.items() if (why := has())}
    left_out: dict[str, int] = {}
    for item in list(items):
        for mark, why in missing.items():
            if item.get_closest_marker(mark) is not None:
                items.remove(item)
                left_out[why] = left_out.get(why, 0) + 1
                break
    config.stash[ELSEWHERE] = left_out


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for why, count in config.stash.get(ELSEWHERE, {}).items():
        terminalreporter.line(f"Left out: {count} test{'s' if count > 1 else ''}, {why}")


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


def no_cluster() -> str:
    return "" if os.environ.get("KUBECONFIG") else "KUBECONFIG names no Kubernetes cluster"


NEEDS = {"gpu": no_gpu, "engine": no_engine, "cluster": no_cluster}
