"""Where the repository and its guides are published. setup.py reads this file without the package."""

from __future__ import annotations

HOME = "https://inferline-stream.example"
"""The repository's address: every other link follows from this line."""

GUIDES = f"{HOME}/blob/main/docs"
