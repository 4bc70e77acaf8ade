"""Access tokens for Kafka from a program, such as one that signs for Amazon MSK's IAM.

A sealed process runs no program: the one that started it does, see `NameService`.
"""

from __future__ import annotations

import asyncio
import shlex

from inferline_stream.errors import Unreachable

TIMEOUT_S = 10.0
_LONGEST_TOKEN = 1 << 15


async def program_says(program: str) -> str:
    """Return what a program prints.

    Args:
        program: with its arguments, as a shell takes them apart; no shell runs it.

    Raises:
        Unreachable: it cannot be run, fails, takes too long, or prints too much.
    """
    try:
        running = await asyncio.create_subprocess_exec(
            *shlex.split(program), stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE
        )
    except (OSError, ValueError) as error:
        raise Unreachable(f"the token program {program!r} cannot be run: {error}") from None
    try:
        async with asyncio.timeout(TIMEOUT_S):
            said, _ = await running.communicate()
    except TimeoutError:
        raise Unreachable(f"the token program {program!r} prints nothing within {TIMEOUT_S:g} s") from None
    finally:
        if running.returncode is None:
            running.kill()
            await running.wait()
    if running.returncode or len(said) > _LONGEST_TOKEN:
        why = f"ends with code {running.returncode}" if running.returncode else f"prints {len(said)} bytes"
        raise Unreachable(f"the token program {program!r} {why}")
    return said.decode("utf-8", errors="replace")
