"""Files of the live page and of the what-if page, and the headers that both are served with."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

HTML, _CSS, _SCRIPT = "text/html; charset=utf-8", "text/css; charset=utf-8", "text/javascript; charset=utf-8"

WHAT_IF = {
    "/what-if": ("what-if.html", HTML),
    "/what-if.js": ("what-if.js", _SCRIPT),
    "/page.css": ("page.css", _CSS),
    "/charts.js": ("charts.js", _SCRIPT),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
"""Name and content type by path."""

LIVE = {
    "/": ("index.html", HTML),
    "/page.js": ("page.js", _SCRIPT),
    "/dag.js": ("dag.js", _SCRIPT),
    "/control.js": ("control.js", _SCRIPT),
}

HEADERS = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


@cache
def page_file(name: str) -> bytes:
    """Return a file of a page."""
    return files(__package__).joinpath(name).read_bytes()
