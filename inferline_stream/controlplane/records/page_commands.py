"""Has done what the live page asks for: by overrides in the control topic, as `scale`, `pause` and `resume` do."""

from __future__ import annotations

import asyncio

from inferline_stream.controlplane.records.control_records import Override, encode
from inferline_stream.kafka.records import Record
from inferline_stream.kafka.writer import write_once
from inferline_stream.observability.page.control import Command, PageControl
from inferline_stream.pipeline.names import Names

_WRITTEN_WITHIN_S = 12.0
WHO = "the live page"


def overrides_of(command: Command) -> list[tuple[str, Override | None]]:
    """Records of the control topic that bring a command about, by key; None takes an override back."""
    stage = command.stage
    match command.action:
        case "pause":
            return [("pause", Override("pause", who=WHO))]
        case "resume":
            return [("pause", None)]
        case "scale":
            return [(f"scale/{stage}", Override("scale", stage, command.replicas, who=WHO))]
        case "release":
            return [(f"{kind}/{stage}", None) for kind in ("scale", "limits", "standby")]


def page_control(token: str, bootstrap_servers: str, names: Names) -> PageControl:
    """Writes the page's commands from the running event loop, whatever thread they come from.

    Raises:
        UsageError: the token could be guessed.
    """
    loop = asyncio.get_running_loop()

    async def write(command: Command) -> None:
        for key, override in overrides_of(command):
            value = None if override is None else encode(override)
            await write_once(bootstrap_servers, Record.keyed(names.control, key, value))

    def obey(command: Command) -> None:
        asyncio.run_coroutine_threadsafe(write(command), loop).result(_WRITTEN_WITHIN_S)

    return PageControl(token, obey)
