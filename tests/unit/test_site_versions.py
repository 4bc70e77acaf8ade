"""The site of each release stays, and readers come to the newest one."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def versions() -> SimpleNamespace:
    return SimpleNamespace(**runpy.run_path(str(DOCS / "versions.py")))


def test_a_release_is_added_beside_the_older_ones_and_a_patch_takes_the_place_of_its_minor(versions, tmp_path) -> None:
    site, published = tmp_path / "site", tmp_path / "published"
    (site / "__pycache__").mkdir(parents=True)
    published.mkdir()
    for version in ("0.9.0", "0.10.0", "0.9.1"):
        (site / "index.html").write_text(version)
        versions.add(version, site, published)
    assert {f.name: (f / "index.html").read_text() for f in published.iterdir() if f.is_dir()} == {
        "0.9": "0.9.1",
        "0.10": "0.10.0",
    }
    assert not (published / "0.9/__pycache__").exists()
    listed = json.loads((published / "versions.json").read_text())
    assert [(each["version"], each["aliases"]) for each in listed] == [("0.10", ["latest"]), ("0.9", [])]
    assert "url=0.10/" in (published / "index.html").read_text()
