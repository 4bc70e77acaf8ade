"""The benchmark `slot_faults`: each fault has its place in the code, and the laws are played where it is planted."""

from pathlib import Path

import pytest

from tests.benchmarks.mutants import ROOT
from tests.benchmarks.slot_faults import DISPATCHER, FAULTS, Fault


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.what)
def test_a_fault_has_one_place_and_leaves_code_that_compiles(fault: Fault) -> None:
    planted = fault.planted((ROOT / DISPATCHER / fault.file).read_text())
    compile(planted, fault.file, "exec")


def test_a_fault_whose_place_is_gone_is_refused() -> None:
    with pytest.raises(ValueError, match="0 places"):
        FAULTS[0].planted(Path(__file__).read_text())
