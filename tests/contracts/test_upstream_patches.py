"""The patches of docs/upstream: they apply to the aiokafka that is installed, and fix what their tests show."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import aiokafka

PATCHES = sorted((Path(__file__).parents[2] / "docs/upstream").glob("*.patch"))


def failed(folder: Path) -> set[str]:
    """Names of the test files that fail on the aiokafka of a folder."""
    options = ["-q", "-rf", "--tb=no", "--assert=plain", "-p", "no:cacheprovider", "-p", "no:asyncio", "-W", "ignore"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "-c", os.devnull, "--rootdir", str(folder), "tests"],
        cwd=folder, env={**os.environ, "PYTHONPATH": str(folder)}, capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip
    assert f"{len(PATCHES)} passed" in done.stdout or f"{len(PATCHES)} failed" in done.stdout, done.stdout + done.stderr
    return set(re.findall(r"^FAILED tests/(\w+)\.py", done.stdout, re.MULTILINE))


def test_each_patch_applies_and_its_test_fails_without_it(tmp_path: Path) -> None:
    installed = Path(aiokafka.__file__).parent
    shutil.copytree(installed, tmp_path / "aiokafka", ignore=shutil.ignore_patterns("__pycache__"))
    for patch in PATCHES:
        subprocess.run(["git", "apply", str(patch)], cwd=tmp_path, check=True)
    tests = {file.stem for file in (tmp_path / "tests").iterdir()}
    assert {name.removeprefix("test_").replace("_", "-") for name in tests} == {patch.stem for patch in PATCHES}
    assert failed(tmp_path) == set()
    shutil.rmtree(tmp_path / "aiokafka")
    shutil.copytree(installed, tmp_path / "aiokafka", ignore=shutil.ignore_patterns("__pycache__"))
    assert failed(tmp_path) == tests
