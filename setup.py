"""The project's links, which all follow from one address; pyproject.toml says everything else."""

import runpy
from pathlib import Path

from setuptools import setup

published = runpy.run_path(str(Path(__file__).with_name("inferline_stream") / "documentation.py"))

setup(
    project_urls={
        "Repository": published["HOME"],
        "Documentation": f"{published['GUIDES']}/index.md",
        "Changelog": f"{published['HOME']}/blob/main/CHANGELOG.md",
        "Issues": f"{published['HOME']}/issues",
    }
)
