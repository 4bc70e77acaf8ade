"""An advice for consumer groups as one page of HTML that needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from inferline_stream.pipeline.units import count_of, format_duration
from inferline_stream.replay.group_contest import GroupContest
from inferline_stream.runs.group_advice import SEEN, WAY_HEADS, WAYS, Advice, seen_rows, verdict, way_rows
from inferline_stream.runs.html_page import page_of, section, table_of


def advice_page(advice: Advice) -> str:
    """Return the page."""
    found = advice.contest
    good = found is not None and (now := found.row("now")) is not None and now.keeps_objective
    sentences = "".join(f'<p class="verdict {"good" if good else ""}">{escape(text)}</p>' for text in verdict(advice))
    about = (
        f"{count_of(advice.events, 'event')} in {format_duration(advice.watched_s)}; an SLO of "
        f"{format_duration(advice.slo_s)} for {100 * advice.objective:.4g} % of them"
    )
    head = f"<h1>Advice for {escape(advice.pipeline)}</h1><p class=quiet>{about}</p>"
    tiles = [
        ("P99 now", "–" if advice.p99_s is None else format_duration(advice.p99_s), "end to end, as it was"),
        ("late now", "–" if advice.miss_rate is None else f"{advice.miss_rate:.2%}", "above the SLO"),
        ("traffic", f"{advice.arrival_rate:.4g}/s", "mean of what is judged"),
    ]
    cells = "".join(f"<div><dt>{a}</dt><dd>{escape(b)}<small>{escape(c)}</small></dd></div>" for a, b, c in tiles)
    parts = [head, sentences, f"<dl>{cells}</dl>"]
    parts.append(section("What was seen of each group", table_of(SEEN, seen_rows(advice), numbers=(1, 2))))
    if found is not None:
        parts.append(ways_section(found))
    if advice.notes:
        parts.append(section("How sure this is", "".join(f"<p>{escape(note)}.</p>" for note in advice.notes)))
    return page_of(f"Advice for {advice.pipeline}", parts)


def ways_section(found: GroupContest, more: str = "", first: Sequence[Sequence[str]] = ()) -> str:
    """Return the part of a page that shows every way to choose members, below rows and words of the page's own."""
    note = (
        f"The arrivals, replayed in simulated time ({format_duration(found.judged_s)} of them judged), with the "
        f"pauses that changes of members cost. {_planned(found)} The smallest fixed number and hindsight know what "
        f"comes. After ± is the standard error over the stretches that were judged. {more}"
    )
    ours = (WAYS["ours"], *(row[0] for row in first))
    rows = table_of(WAY_HEADS, [*first, *way_rows(found)], numbers=(1, 2, 4, 5), ours=ours)
    return section("What each way would cost and miss", f"<p class=quiet>{note.strip()}</p>{rows}")


def _planned(found: GroupContest) -> str:
    if found.planned_from_s is None:
        return (
            "Ours was planned for these same arrivals, as too few came to keep some apart: it will be worse than this."
        )
    return (
        f"Ours was planned for what came before, {format_duration(found.planned_from_s)} at most, as `run` plans "
        "once it has seen some traffic."
    )
