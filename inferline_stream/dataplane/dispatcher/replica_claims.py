"""What a replica says of its own work, as far as it can be believed: the stage's code may be anybody's."""

from __future__ import annotations

from collections.abc import Sequence

from inferline_stream.dataplane.dispatcher.report_counts import MAX_COUNTED_S
from inferline_stream.dataplane.frames import Call, Results


def believed_s(claimed_s: float) -> float | None:
    """Return a time that a replica claims; None where it is negative, no number, or longer than a report counts."""
    return claimed_s if 0 <= claimed_s <= MAX_COUNTED_S else None


def believed_calls(frame: Results, batch_size: int) -> Sequence[Call]:
    """Return the calls that a replica claims to have made for a batch; none where one of them cannot be.

    A batch on which the stage raises is halved, again and again: of b events that takes less than 2b calls.
    """
    possible = len(frame.calls) <= 2 * batch_size and all(
        0 < call.batch_size <= batch_size and 0 < call.service_s <= MAX_COUNTED_S for call in frame.calls
    )
    return frame.calls if possible else ()
