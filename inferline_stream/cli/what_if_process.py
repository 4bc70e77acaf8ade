"""The what-if page of a run: its answers come from a child process of the lowest priority, beside the run.

``python -m inferline_stream.cli.what_if_process`` reads a `WhatIfOrder` from standard input, writes the address
at which it answers, and ends with its input. Both ends are ours, so pickle is safe.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Lock
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode
from urllib.request import urlopen

import msgspec

from inferline_stream.cli.options import Platform, SearchOptions, pipeline_of, topology_file
from inferline_stream.cli.plan_steps import Declared, PlanInputs
from inferline_stream.cli.what_if import PATHS, WhatIf, plan_command
from inferline_stream.errors import InferlineError, UsageError
from inferline_stream.observability.page.what_if_server import Answers, serve_what_if
from inferline_stream.pipeline.plan import Plan
from inferline_stream.pipeline.profile import PipelineProfile
from inferline_stream.pipeline.trace import Trace

_LONGEST_ANSWER_S = 600.0
_WAIT_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WhatIfOrder:
    """What the run's plan was made from, and the plan.

    Args:
        topology: file or folder, which the child loads again: code is not sent.
        trace: that it was made for.
        platform: where the run has its replicas.
        search: which search.
        stock: shares of hardware kinds.
        measured: profiles.
        plan: the run's.
        kafka: bootstrap servers and prefix, as options.
    """

    topology: Path
    trace: Trace
    platform: Platform
    search: SearchOptions
    stock: tuple[str, ...]
    measured: PipelineProfile
    plan: Plan
    kafka: tuple[str, ...] = ()

    def what_if(self) -> WhatIf:
        """Return what answers questions about it."""
        what = Declared(pipeline_of(self.topology), topology_file(self.topology), [], self.trace)
        inputs = PlanInputs(what=what, platform=self.platform, search=self.search).limited(self.stock, absent=True)
        command = plan_command(self.topology, self.search, self.platform, self.kafka)
        return WhatIf(inputs, self.measured, self.plan, command)


class WhatIfProcess:
    """Answers a run's what-if page; the child begins with the first question. Close it with the run."""

    def __init__(self) -> None:
        self.order: WhatIfOrder | None = None
        """None until the run has a plan."""
        self._child: subprocess.Popen[bytes] | None = None
        self._url = ""
        self._starting = Lock()

    def answers(self) -> Answers:
        """Return what the page asks for, by path; for any thread."""
        return {path: partial(self._ask, path) for path in PATHS}

    def close(self) -> None:
        """End the child."""
        if self._child is not None:
            self._child.kill()
            self._child.communicate()

    def _ask(self, path: str, question: bytes) -> msgspec.Raw:
        url = f"{self._address()}{path}?{urlencode({'question': question})}"
        try:
            with urlopen(url, timeout=_LONGEST_ANSWER_S) as answer:  # noqa: S310  the child's address
                return msgspec.Raw(answer.read())
        except HTTPError as error:
            raise UsageError(error.read().decode().strip()) from None
        except (URLError, OSError) as error:
            raise InferlineError(f"what answers has ended ({error}); load the page again") from None

    def _address(self) -> str:
        """Where the child answers, once it does."""
        with self._starting:
            if self.order is None:
                raise UsageError("the run has no plan yet; load this page again once it has")
            if self._child is None or self._child.poll() is not None:
                self._child = subprocess.Popen(
                    [sys.executable, "-P", "-m", __name__],
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                )  # fmt: skip
                assert self._child.stdin is not None
                assert self._child.stdout is not None
                try:
                    pickle.dump(self.order, self._child.stdin)
                    self._child.stdin.flush()
                    self._url = self._child.stdout.readline().decode().strip().rstrip("/")
                except BrokenPipeError:
                    self._url = ""
                if not self._url:
                    code = self._child.wait(_WAIT_S)
                    raise InferlineError(f"what answers this page has ended with code {code}; try `plan --ui`")
            return self._url


def main() -> None:
    """Answer until standard input ends."""
    os.nice(19)
    lines = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a topology prints is no address
    order: WhatIfOrder = pickle.load(sys.stdin.buffer)  # noqa: S301  written by our own parent
    what_if = order.what_if()
    server = serve_what_if(what_if.answers(), 0)
    print(server.url, file=lines, flush=True)
    sys.stdin.buffer.read()
    what_if.leave()
    server.close()


if __name__ == "__main__":
    main()
