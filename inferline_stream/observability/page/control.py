"""What the page may ask to have done, and by whom: it is read-only unless a token was given."""

from __future__ import annotations

import hmac
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import msgspec

from inferline_stream.errors import UsageError

FEWEST_CHARACTERS = 16
MOST_REPLICAS = 10_000


class Command(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One wish of a person at the page.

    Args:
        action: hold decisions, decide again, hold a stage at a number of replicas, or leave it to the policy again.
        stage: for the last two.
        replicas: for ``scale``.
    """

    action: Literal["pause", "resume", "scale", "release"]
    stage: str = ""
    replicas: int = 0


@dataclass(frozen=True, slots=True)
class PageControl:
    """Who may command, and who obeys.

    Args:
        token: a request with it is allowed.
        obey: called with each command, from another thread; raises an `InferlineError` where it cannot be done.

    Raises:
        UsageError: the token could be guessed.
    """

    token: str
    obey: Callable[[Command], None]

    def __post_init__(self) -> None:
        if len(self.token) < FEWEST_CHARACTERS:
            raise UsageError(
                f"--ui-token has {len(self.token)} characters, which could be guessed; give {FEWEST_CHARACTERS} or "
                "more, such as `openssl rand -hex 16` writes"
            )

    def allows(self, authorization: str) -> bool:
        """Whether the header's value shows the token; takes as long for a wrong one."""
        return hmac.compare_digest(authorization.encode(), f"Bearer {self.token}".encode())


def read_command(body: bytes, stages: frozenset[str]) -> Command:
    """The command that a request's body holds.

    Args:
        body: JSON.
        stages: of the pipeline.

    Raises:
        ValueError: it is none, in words.
    """
    try:
        command = msgspec.json.decode(body, type=Command)
    except msgspec.DecodeError as error:
        raise ValueError(f"no command: {error}") from None
    if command.action in ("scale", "release") and command.stage not in stages:
        raise ValueError(f"no stage {command.stage!r}; the pipeline has {', '.join(sorted(stages))}")
    if not 0 <= command.replicas <= MOST_REPLICAS:
        raise ValueError(f"{command.replicas} replicas: give 0 to {MOST_REPLICAS}")
    return command
