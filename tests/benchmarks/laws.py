"""How many laws hold on many more examples than the suite tries; what fails is printed with its example.

A quick measurement plays the laws of traffic envelopes alone.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

from tests.benchmarks._figures import Figures
from tests.benchmarks.mutants import ROOT
from tests.support.hypothesis_profiles import MANY

LAWS, QUICK = "tests/laws", "tests/laws/test_calculus_envelope.py"


def measure(quick: bool) -> Figures:
    """Return how many tests of laws ran, and how many failed."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        options = ("-q", f"--hypothesis-profile={MANY}", f"--junit-xml={report}")
        command = (sys.executable, "-m", "pytest", *options, QUICK if quick else LAWS)
        subprocess.run(command, cwd=ROOT, stdout=sys.stderr, check=False)
        (suite,) = ElementTree.parse(report).getroot()
    failed = int(suite.attrib["failures"]) + int(suite.attrib["errors"])
    return {"laws": int(suite.attrib["tests"]), "failed": failed}
