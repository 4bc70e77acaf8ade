"""Which names a server of ours answers to: other sites may have names that resolve to this machine."""

from __future__ import annotations

import ipaddress

_LOOPBACK = frozenset(("localhost", "127.0.0.1", "::1"))
_EVERY_ADDRESS = frozenset(("0.0.0.0", "::", ""))  # noqa: S104  compared with, not listened on


def is_ours(header: str, bound: str) -> bool:
    """Return whether a request's ``Host`` header names this server.

    A server that listens on every address answers to any address, and to names without a dot, as containers have them.
    Neither can be a name that somebody else has registered.

    Args:
        header: of the request.
        bound: the address or name that the server listens on.
    """
    name = _without_port(header.strip()).lower()
    if name in _LOOPBACK or (name and name == bound.strip("[]").lower()):
        return True
    return bound in _EVERY_ADDRESS and bool(name) and ("." not in name or _is_address(name))


def _without_port(header: str) -> str:
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.partition(":")[0]


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
