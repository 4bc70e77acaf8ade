"""Who may send events over HTTP, and how many: values and rules, no IO."""

from __future__ import annotations

import hashlib
import hmac
import re
import uuid
from collections.abc import Iterable
from dataclasses import dataclass

_KEY = re.compile(r"[!-~]{1,200}")
_SENDER = 16
"""Hexadecimal digits of a token's digest: enough to tell tokens apart."""
_WAIT = re.compile(r"(?:^|[,;\s])wait=(\d{1,6})(?:$|[,;\s])")


@dataclass(frozen=True, slots=True)
class Refused:
    """An HTTP answer that says no.

    Args:
        status: of HTTP.
        message: what was wrong, and the remedy.
        again_after_s: when to try again, in whole seconds; None for never.
    """

    status: int
    message: str
    again_after_s: int | None = None


class BearerTokens:
    """Bearer tokens that may send; kept as digests, compared in constant time.

    Args:
        tokens: any of them will do: each client has its own, and old ones are replaced one by one.
    """

    def __init__(self, tokens: Iterable[str]) -> None:
        self._digests = [hashlib.sha256(token.encode()).digest() for token in tokens]

    def sender(self, authorization: str) -> str | Refused:
        """Return a digest of the token in this ``Authorization`` header, or what to answer to one that may not send."""
        scheme, _, token = authorization.partition(" ")
        given = hashlib.sha256(token.strip().encode("utf-8", "surrogateescape")).digest()
        known = [hmac.compare_digest(given, digest) for digest in self._digests]  # all of them, whichever fits
        if scheme.lower() == "bearer" and any(known):
            return given.hex()[:_SENDER]
        return Refused(401, "send Authorization: Bearer with one of the tokens of --token-file")


class Bucket:
    """A token bucket: so many events a second in the long run, and a second's worth at once.

    Args:
        rate: events per second.
    """

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._most = max(1.0, rate)
        self._left = self._most
        self._at_s = 0.0

    def take(self, now_s: float) -> bool:
        """Whether one more event may come now.

        Args:
            now_s: on a clock that never goes back.
        """
        self._left = min(self._most, self._left + max(0.0, now_s - self._at_s) * self._rate)
        self._at_s = now_s
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True


def event_id_of(idempotency_key: str | None, sender: str) -> str | Refused:
    """Return the event's id: what the client says, so that it may send it again, or a new one.

    Args:
        idempotency_key: of the request.
        sender: digest of its token, so that a key means nothing to those who have another; empty where there are none.
    """
    if idempotency_key is None:
        return uuid.uuid4().hex
    if not _KEY.fullmatch(idempotency_key):
        return Refused(400, "Idempotency-Key must be 1 to 200 printable ASCII characters without spaces")
    return f"{sender}/{idempotency_key}" if sender else idempotency_key


def wait_s_of(prefer: str, longest_s: float) -> float:
    """How long a client wants to wait for the result, by its ``Prefer: wait=SECONDS`` header (RFC 7240); 0 for not."""
    found = _WAIT.search(prefer)
    return min(float(found[1]), longest_s) if found else 0.0
