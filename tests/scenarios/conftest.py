from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from tests.kube.fixtures import make_api
from tests.support.emulated_runs import emulated_run

__all__ = ["make_api"]


@pytest.fixture
def swing(tmp_path: Path) -> partial:
    """Builds runs of the swing topology on a Kafka: see `emulated_run`."""
    folder = Path(__file__).parent / "swing"
    return partial(emulated_run, folder, folder=tmp_path, probability={("parse", "check"): 1 / 3}, key_field="number")
