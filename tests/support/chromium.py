"""The system's Chromium, which tests show pages in."""

from __future__ import annotations

import shutil

import pytest
from playwright.sync_api import Browser, Playwright

CHROMIUM = shutil.which("chromium")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: apt-get install chromium")
LONGEST_MS = 120_000
"""Until it has started or shows what is waited for, beside processes that keep all cores busy."""
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


def launch_chromium(playwright: Playwright) -> Browser:
    """Start it without a sandbox, which root cannot have, and without what it would ask a network for."""
    return playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS, timeout=LONGEST_MS)
