from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from tests.kube.fixtures import make_api
from tests.support.emulated_runs import swing_runs

__all__ = ["make_api"]


@pytest.fixture
def swing(tmp_path: Path) -> partial:
    """Builds runs of the swing topology on a Kafka: see `emulated_run`."""
    return swing_runs(tmp_path, key_field="number")
