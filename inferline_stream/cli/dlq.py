"""`dlq`: events that could not be processed: list them, look at them, send them again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer
from rich.markup import escape
from rich.table import Table

from inferline_stream.cli.options import Output, Running, Topology, check_stages, pipeline_of
from inferline_stream.cli.output import console, print_json
from inferline_stream.pipeline.names import ERRORS_PREFIX
from inferline_stream.pipeline.topology import Pipeline
from inferline_stream.pipeline.units import count_of
from inferline_stream.safe_text import printable

if TYPE_CHECKING:
    from inferline_stream.dataplane.dead_letters import Letter, SentAgain


@dataclass(frozen=True, slots=True, kw_only=True)
class LetterOptions:
    """Which dead letters, and of which pipeline."""

    topology: Topology
    letters: Annotated[
        list[str] | None,
        typer.Argument(help="ids of dead letters, as `dlq ls` prints them, or of events; all by default"),
    ] = None
    running: Running
    stage: Annotated[str | None, typer.Option(help="only those that died at this stage")] = None

    @property
    def pipeline(self) -> Pipeline:
        """The pipeline, which must have the stage."""
        pipeline = pipeline_of(self.topology)
        check_stages([self.stage] if self.stage else None, pipeline)
        return pipeline


def ls(wanted: LetterOptions, *, output: Output = "table") -> None:
    """List events that could not be processed."""
    found = _chosen(wanted.pipeline, wanted)
    if output == "json":
        print_json({"letters": [_in_short(letter) for letter in found]})
    else:
        _list(found)


def show(wanted: LetterOptions, *, output: Output = "table") -> None:
    """Print such events in full: value, headers, and why each one died."""
    pipeline, prefix = wanted.pipeline, wanted.running.prefix
    found = _chosen(pipeline, wanted)
    if output == "json":
        print_json({"letters": [_in_full(letter, pipeline, prefix) for letter in found]})
    else:
        for letter in found:
            _show(letter, pipeline, prefix)


def replay(
    wanted: LetterOptions,
    *,
    again: Annotated[bool, typer.Option("--again", help="also those that were sent again before")] = False,
    output: Output = "table",
) -> None:
    """Send such events again, once the cause is gone.

    Each record goes back to the topic that it failed in, with its own key, headers, timestamp and event id, together
    with the other parts of its event where a join needs them. It is noted beside the letters: a second replay leaves
    them alone and says so.
    """
    import uvloop

    from inferline_stream.dataplane.dead_letters import send_again

    running, ids = wanted.running, wanted.letters or []
    sent = send_again(
        running.bootstrap_servers, wanted.pipeline, running.prefix, ids=ids, stage=wanted.stage, again=again
    )
    _print_sent(uvloop.run(sent), as_json=output == "json")


def _chosen(pipeline: Pipeline, wanted: LetterOptions) -> list[Letter]:
    import uvloop

    from inferline_stream.dataplane.dead_letters import chosen, dead_letters

    found = uvloop.run(dead_letters(wanted.running.bootstrap_servers, pipeline, wanted.running.prefix))
    return chosen(found, wanted.letters or [], wanted.stage)


def _print_sent(done: SentAgain, *, as_json: bool) -> None:
    before = [letter for letter in done.before if letter not in done.sent]
    if as_json:
        alone = [letter.id for letter in (*before, *done.cut)]
        print_json({"sent": [letter.id for letter in done.sent], "left_alone": alone})
        return
    for letter in done.sent:
        earlier = f" (again: first on {_time(letter.sent_again_ms)})" if letter.sent_again_ms else ""
        print(f"{letter.id} sent to {letter.input_topic}{earlier}")
    for letter in before:
        print(f"{letter.id} left alone: it was sent on {_time(letter.sent_again_ms)}; --again sends it once more")
    for letter in done.cut:
        print(f"{letter.id} left alone: its value was too large to be kept here; the record is {letter.failed_in}")
    if not done.sent and not before and not done.cut:
        print("no dead letters")


def _list(letters: Sequence[Letter]) -> None:
    table = Table(title="Dead letters", caption=f"{count_of(len(letters), 'letter')}; `dlq show` prints them in full")
    for name in ("letter", "died", "stage", "event", "why", "sent again"):
        table.add_column(name, overflow="fold")
    for letter in letters:
        why = f"{letter.says('type')}: {letter.says('message')}"[:120]
        cells = (letter.id, _time(letter.died_ms), letter.says("stage"), letter.event_id, why)
        table.add_row(*(escape(printable(cell)) for cell in cells), _time(letter.sent_again_ms))
    console().print(table)


def _show(letter: Letter, pipeline: Pipeline, prefix: str) -> None:
    shown = _in_full(letter, pipeline, prefix)
    headers, traceback = shown.pop("headers"), shown.pop("traceback")
    for name, value in shown.items():
        if value is not None:
            text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
            print(f"{name:<12} {printable(text)}")
    for name, value in headers.items():
        print(f"{'header':<12} {printable(f'{name}: {value}')}")
    print(printable(traceback, keep="\n\t"))


def _in_short(letter: Letter) -> dict[str, Any]:
    from inferline_stream.dataplane.dead_letters import shown_bytes

    return {
        "letter": letter.id,
        "died": _time(letter.died_ms),
        "stage": letter.says("stage"),
        "event_id": letter.event_id,
        "type": letter.says("type"),
        "message": letter.says("message"),
        "key": shown_bytes(letter.key),
        "size_bytes": len(letter.value or b""),
        "replays": letter.replays,
        "sent_again": _time(letter.sent_again_ms) or None,
    }


def _in_full(letter: Letter, pipeline: Pipeline, prefix: str) -> dict[str, Any]:
    from inferline_stream.dataplane.dead_letters import decoded, shown_bytes

    shown = _in_short(letter)
    shown["failed_in"] = letter.failed_in
    shown["timestamp"] = _time(letter.time_ms) or None
    shown["parent"] = letter.parent or None
    try:
        shown["value"], shown["undecodable"] = _as_json(decoded(letter, pipeline, prefix)), None
    except ValueError as error:
        shown["value"], shown["undecodable"] = shown_bytes(letter.value), str(error)
    shown["headers"] = {
        name: shown_bytes(value) for name, value in letter.headers if not name.startswith(ERRORS_PREFIX)
    }
    shown["traceback"] = letter.says("traceback")
    return shown


def _as_json(value: Any) -> Any:
    """A value that JSON can hold.

    Raises:
        ValueError: it cannot, e.g. a map of a user's own format whose keys are no texts.
    """
    from inferline_stream.dataplane.dead_letters import shown_bytes

    try:
        msgspec.json.encode(value)
    except Exception as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
    return shown_bytes(value) if isinstance(value, bytes) else value


def _time(time_ms: int | None) -> str:
    if time_ms is None:
        return ""
    try:
        return datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="milliseconds")
    except (ValueError, OverflowError):
        return f"{time_ms} ms"  # a broker keeps any number that a producer gives it
