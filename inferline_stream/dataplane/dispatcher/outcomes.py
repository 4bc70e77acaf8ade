"""What becomes of an event at a stage, beside a result or a failure that a replica reports (`frames`)."""

from __future__ import annotations

import msgspec

from inferline_stream.dataplane.frames import Done, Failed


class Skipped(msgspec.Struct, frozen=True):
    """A join's event none of whose parents was visited."""


class Dead(msgspec.Struct, frozen=True):
    """A join's event that died, and was accounted for, upstream."""

    how: int
    """`headers.DROPPED` or `headers.LETTERED`."""


class Expired(msgspec.Struct, frozen=True):
    """An event that is past its SLO and not worth processing any more."""

    to_dead_letters: bool


class Late(msgspec.Struct, frozen=True):
    """A part of a join's event that came after the event was given up: it goes to the others among the letters."""


class Requeued(msgspec.Struct, frozen=True):
    """Parts of a join's event that hold up their partition: they are appended at its end again."""

    moved: int
    """See `headers.MOVED`."""


Ending = Failed | Skipped | Dead | Late | Requeued
"""What an event comes to without the stage."""

Outcome = Done | Failed | Skipped | Dead | Expired | Late | Requeued
