"""`dlq`: events that could not be processed: list them, look at them, send them again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inferline_stream.cli.options import Output, Prefix, RunningServers, Topology
from inferline_stream.cli.output import print_json
from inferline_stream.safe_text import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from inferline_stream.dataplane.dead_letters import Letter, SentAgain
    from inferline_stream.pipeline.topology import Pipeline


Letters = Annotated[
    list[str] | None,
    typer.Argument(help="ids of dead letters, as `dlq ls` prints them, or of events; all by default"),
]
DiedAt = Annotated[str | None, typer.Option("--stage", help="only those that died at this stage")]


def ls(
    topology: Topology,
    letters: Letters = None,
    *,
    bootstrap_servers: RunningServers,
    stage: DiedAt = None,
    prefix: Prefix = "",
    output: Output = "table",
) -> None:
    """List events that could not be processed."""
    pipeline = _pipeline(topology, stage)
    found = _chosen(pipeline, bootstrap_servers, prefix, letters, stage)
    if output == "json":
        print_json({"letters": [_in_short(letter, pipeline, prefix) for letter in found]})
    else:
        _list(found)


def show(
    topology: Topology,
    letters: Letters = None,
    *,
    bootstrap_servers: RunningServers,
    stage: DiedAt = None,
    prefix: Prefix = "",
    output: Output = "table",
) -> None:
    """Print such events in full: value, headers, and why each one died."""
    pipeline = _pipeline(topology, stage)
    found = _chosen(pipeline, bootstrap_servers, prefix, letters, stage)
    if output == "json":
        print_json({"letters": [_in_full(letter, pipeline, prefix) for letter in found]})
    else:
        for letter in found:
            _show(letter, pipeline, prefix)


def replay(
    topology: Topology,
    letters: Letters = None,
    *,
    bootstrap_servers: RunningServers,
    stage: DiedAt = None,
    again: Annotated[bool, typer.Option("--again", help="also those that were sent again before")] = False,
    prefix: Prefix = "",
    output: Output = "table",
) -> None:
    """Send such events again, once the cause is gone.

    Each record goes back to the topic that it failed in, with its own key, headers, timestamp and event id, together
    with the other parts of its event where a join needs them. It is noted beside the letters: a second replay leaves
    them alone and says so.
    """
    import uvloop

    from inferline_stream.dataplane.dead_letters import send_again

    pipeline = _pipeline(topology, stage)
    sent = send_again(bootstrap_servers, pipeline, prefix, ids=letters or [], stage=stage, again=again)
    _print_sent(uvloop.run(sent), as_json=output == "json")


def _pipeline(topology: Path, stage: str | None) -> Pipeline:
    """The pipeline, which must have the stage."""
    from inferline_stream.cli.plan_steps import topology_file
    from inferline_stream.dataplane.topology_loader import load_topology
    from inferline_stream.errors import UsageError
    from inferline_stream.pipeline.validation import validated

    pipeline = validated(load_topology(topology_file(topology)))
    stages = [known.name for known in pipeline.stages]
    if stage is not None and stage not in stages:
        raise UsageError(f"--stage {stage!r}: the pipeline has {', '.join(stages)}")
    return pipeline


def _chosen(
    pipeline: Pipeline, bootstrap_servers: str, prefix: str, letters: list[str] | None, stage: str | None
) -> list[Letter]:
    import uvloop

    from inferline_stream.dataplane.dead_letters import chosen, dead_letters

    return chosen(uvloop.run(dead_letters(bootstrap_servers, pipeline, prefix)), letters or [], stage)


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
    from rich.markup import escape
    from rich.table import Table

    from inferline_stream.cli.output import console

    table = Table(title="Dead letters", caption=f"{len(letters)} letters; `dlq show` prints them in full")
    for name in ("letter", "died", "stage", "event", "why", "sent again"):
        table.add_column(name, overflow="fold")
    for letter in letters:
        why = f"{letter.says('type')}: {letter.says('message')}"[:120]
        cells = (letter.id, _time(letter.died_ms), letter.says("stage"), letter.event_id, why)
        table.add_row(*(escape(printable(cell)) for cell in cells), _time(letter.sent_again_ms))
    console().print(table)


def _show(letter: Letter, pipeline: Pipeline, prefix: str) -> None:
    import msgspec

    shown = _in_full(letter, pipeline, prefix)
    headers, traceback = shown.pop("headers"), shown.pop("traceback")
    for name, value in shown.items():
        if value is not None:
            text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
            print(f"{name:<12} {printable(text)}")
    for name, value in headers.items():
        print(f"{'header':<12} {printable(f'{name}: {value}')}")
    print(printable(traceback, keep="\n\t"))


def _in_short(letter: Letter, pipeline: Pipeline, prefix: str) -> dict[str, Any]:
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
    from inferline_stream.pipeline.names import ERRORS_PREFIX

    shown = _in_short(letter, pipeline, prefix)
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
    import msgspec

    from inferline_stream.dataplane.dead_letters import shown_bytes

    try:
        msgspec.json.encode(value)
    except Exception as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
    return shown_bytes(value) if isinstance(value, bytes) else value


def _time(time_ms: int | None) -> str:
    from datetime import UTC, datetime

    if time_ms is None:
        return ""
    try:
        return datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="milliseconds")
    except (ValueError, OverflowError):
        return f"{time_ms} ms"  # a broker keeps any number that a producer gives it
