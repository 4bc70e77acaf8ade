"""The published site holds one folder per release: `python docs/versions.py 0.1.0 FOLDER` adds one to those in FOLDER.

The site's menu of versions reads `versions.json` beside them, in the form of `mike`. The newest release is where the
address without a version leads.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

DOCS = Path(__file__).parent
REDIRECT = '<!doctype html><meta charset="utf-8"><meta http-equiv="refresh" content="0; url={}/"><title>{}</title>\n'


def add(version: str, site: Path, published: Path) -> None:
    """Put a built site in the place of its version.

    Args:
        version: such as ``0.1.0``; patch releases share the folder of their minor one.
        site: as `zensical build` leaves it.
        published: what the web server has.
    """
    minor = ".".join(version.split(".")[:2])
    shutil.rmtree(published / minor, ignore_errors=True)
    shutil.copytree(site, published / minor, ignore=shutil.ignore_patterns("__pycache__"))
    known = {folder.name for folder in published.iterdir() if (folder / "index.html").exists()}
    newest, *older = sorted(known, key=lambda name: tuple(map(int, name.split("."))), reverse=True)
    aliases = [(newest, ["latest"]), *((name, []) for name in older)]
    listed = [{"version": name, "title": name, "aliases": alias} for name, alias in aliases]
    (published / "versions.json").write_text(json.dumps(listed, indent=2) + "\n")
    (published / "index.html").write_text(REDIRECT.format(newest, "inferline-stream"))


if __name__ == "__main__":
    zensical = Path(sys.executable).with_name("zensical")
    subprocess.run([zensical, "build", "--strict", "-f", DOCS / "zensical.toml"], check=True)
    add(sys.argv[1], DOCS / "site", Path(sys.argv[2]))
