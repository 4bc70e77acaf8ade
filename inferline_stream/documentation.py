"""Where the guides are published."""

from __future__ import annotations

from importlib.metadata import metadata


def guides() -> str:
    """Return the address of the folder of the guides: the project's documentation link, which pyproject.toml sets."""
    links: dict[str, str] = dict(
        link.split(", ", 1) for link in metadata("inferline-stream").get_all("Project-URL") or ()
    )
    return links["Documentation"]
