"""Conditions of a resource's status, as `kubectl wait` and GitOps tools read them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import NamedTuple


class Condition(NamedTuple):
    """One of them, as somebody sees it now.

    Args:
        type: what it is about, such as ``Ready``.
        status: ``True``, ``False`` or ``Unknown``.
        reason: one word.
        message: for people.
    """

    type: str
    status: str
    reason: str
    message: str


def conditions(
    before: Sequence[dict[str, str]], said: Sequence[Condition], now: datetime | None = None
) -> list[dict[str, str]]:
    """Return a status's conditions: those of others as they were, and these, each with the time of its last change.

    Args:
        before: the status's, as the API server has them.
        said: what holds now.
        now: by default, now.
    """
    kept = {each["type"]: each for each in before if "type" in each}
    for each in said:
        same = kept.get(each.type, {}).get("status") == each.status
        since = kept[each.type].get("lastTransitionTime") if same else None
        moment = since or (now or datetime.now(UTC)).strftime("%Y-%m-%dT%H:%M:%SZ")
        kept[each.type] = {**each._asdict(), "lastTransitionTime": moment}
    return list(kept.values())
