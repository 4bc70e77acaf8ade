"""Whether the laws of a slot see faults: each is planted into a copy of the package, which then plays the laws.

A fault is one that loses, repeats, reorders or stops events. The laws are those of `test_slot_laws`: what it finds, it
finds without Kafka, a socket or a clock. `found`: faults under which they fail, or run many times as long.
"""

from __future__ import annotations

import os
import queue
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks._figures import Figures
from tests.benchmarks.mutants import ROOT

DISPATCHER = "inferline_stream/dataplane/dispatcher"

LAWS = ("SlotLaws", "ExactlyOnceLaws", "JoinLaws", "ExactlyOnceJoinLaws")
EXAMPLES = 300

_PLAY = """
import logging, sys
import pytest
from hypothesis import Phase, settings
logging.disable(logging.CRITICAL)
import tests.conftest
settings.register_profile("faults", settings.get_profile("few"), phases=[Phase.generate], database=None)
settings.load_profile("faults")
from tests.unit.dataplane.dispatcher import test_slot_laws as laws
changed = pytest.MonkeyPatch()
played = laws.settings
laws.settings = lambda **how: played(**{**how, "max_examples": int(sys.argv[2])})
laws.test_whatever_happens_to_a_slot_it_keeps_its_promises(getattr(laws, sys.argv[1]), changed)
"""

_AT_LEAST_S, _TIMES_AS_LONG = 60.0, 8.0


@dataclass(frozen=True, slots=True)
class Fault:
    """A change of one place.

    Args:
        what: goes wrong, in words.
        file: of dispatcher/.
        right: what stands there, once.
        wrong: what is put in its place.
    """

    what: str
    file: str
    right: str
    wrong: str

    def planted(self, source: str) -> str:
        """Return the source with the fault.

        Raises:
            ValueError: its place is gone, or is not the only one.
        """
        if source.count(self.right) != 1:
            raise ValueError(f"{self.file} has {source.count(self.right)} places for the fault {self.what!r}")
        return source.replace(self.right, self.wrong)


FAULTS = (
    Fault(
        "a batch that was spared is not put back",
        "lost_batches.py",
        "    elif hand.events:\n        session.requeue(hand.events)",
        "    elif False:\n        session.requeue(hand.events)",
    ),
    Fault(
        "what a dead replica had in hand is forgotten",
        "batch_exchange.py",
        "        self._lost.lose(self._session, replica, why, beside=beside, memory=memory, device=device)\n",
        "",
    ),
    Fault(
        "a dead replica stays in the pool",
        "batch_exchange.py",
        "        self._pool.detach(replica.replica)\n        self._lost.lose",
        "        self._lost.lose",
    ),
    Fault(
        "the last event of a batch is not put back",
        "session.py",
        "            queue.put_back(of_class, limit)",
        "            queue.put_back(list(of_class)[:-1] or of_class, limit)",
    ),
    Fault(
        "a doubtful batch is not run again",
        "doubtful_batches.py",
        "        if not kept.hand.alone:\n            session.requeue(kept.hand.events)",
        "        if not kept.hand.alone:\n            pass",
    ),
    Fault(
        "what waits aside never comes back",
        "doubtful_batches.py",
        "            if of is session:",
        "            if of is not session:",
    ),
    Fault(
        "the first half of a batch is put back before the second",
        "doubtful_batches.py",
        "            session.requeue(events[half:], half)\n            session.requeue(events[:half], half)",
        "            session.requeue(events[:half], half)\n            session.requeue(events[half:], half)",
    ),
    Fault(
        "a suspect is handed out as any event",
        "next_batches.py",
        "self._hand(session, replica, (task,)).alone = True",
        "self._hand(session, replica, (task,))",
    ),
    Fault(
        "a suspect that has passed remains one",
        "poison_suspects.py",
        "        self._suspects.remove(suspect)\n        if success:",
        "        if success:",
    ),
    Fault(
        "more outcomes than events are taken",
        "batch_exchange.py",
        "if hand.events and len(frame.outcomes) != len(hand.events):",
        "if hand.events and len(frame.outcomes) < len(hand.events):",
    ),
    Fault(
        "batches of an earlier session count",
        "batch_exchange.py",
        "                if hand.epoch != session.epoch:\n                    hand.events = ()",
        "                pass",
    ),
    Fault(
        "a late batch counts twice",
        "lost_batches.py",
        "        events, hand.events = hand.events, ()\n        self._slot.report.counts.batches_lost += 1",
        "        events = hand.events\n        self._slot.report.counts.batches_lost += 1",
    ),
    Fault(
        "a key's events go back behind its others",
        "waiting_room.py",
        "self.waiting.insert(0, (rank, sequence, event))",
        "self.waiting.append((rank, sequence, event))",
    ),
    Fault(
        "a key in hand is handed out again",
        "queue.py",
        "        lowers = lane.append(place, sequence, event)\n        if not lane.in_hand:",
        "        lowers = lane.append(place, sequence, event) or lane.in_hand > 0\n        if True:",
    ),
    Fault(
        "a key stays taken",
        "queue.py",
        "            lane = lanes[name]\n            lane.in_hand -= 1\n",
        "            lane = lanes[name]\n",
    ),
    Fault(
        "offsets are complete before the results are sent",
        "result_delivery.py",
        "            slot.ask(Produce(outgoing))\n",
        "            slot.ask(Produce(outgoing))\n"
        "            for event, _ in self._sending:\n"
        "                self._partitions[event.partition].completion.complete(event.offsets[0])\n",
    ),
    Fault(
        "a second send begins beside the first",
        "result_delivery.py",
        "        elif self._sending is None and self._finished and self._is_due(self._send_at_s, over=over):",
        "        elif self._finished and self._is_due(self._send_at_s, over=over):",
    ),
    Fault(
        "of many results some are not sent",
        "result_delivery.py",
        "self._sending, self._finished = self._finished[:count], self._finished[count:]",
        "self._sending, self._finished = self._finished[:5], []",
    ),
    Fault(
        "it works on without a lease",
        "result_delivery.py",
        "if not self._lapsed and not self._slot.lease.valid_at(self._slot.now_s):",
        "if self._slot.now_s < 0:",
    ),
    Fault(
        "a lapse that was noticed does not stop it",
        "slot.py",
        "            events.LeaseLost: lambda _: self._session.delivery.lapse(),",
        "            events.LeaseLost: lambda _: None,",
    ),
    Fault(
        "a transaction that was open in a lapse is not committed",
        "result_delivery.py",
        "        if self._acknowledged and self._committing is None:\n            self._begin_commit(self._due())\n",
        "",
    ),
    Fault(
        "a commit that was acknowledged is not noted",
        "result_delivery.py",
        "            self._partitions[number].was_committed(entry)",
        "            self._partitions[number].found_committed(None)",
    ),
    Fault(
        "unsent results have no bound",
        "result_delivery.py",
        "return self._finished_bytes + self._sending_bytes < UNSENT_BYTES",
        "return True",
    ),
    Fault(
        "the committed offset is one too high",
        "completion.py",
        "self._entry = committed.offset, encode",
        "self._entry = committed.offset + 1, encode",
    ),
    Fault(
        "it reads on for a full queue",
        "session.py",
        "        if self.queue.size_bytes >= QUEUE_BYTES:",
        "        if self.queue.size_bytes < 0:",
    ),
    Fault(
        "an event that fails leaves no letter",
        "emitter.py",
        "        self._letters(event, event.records, failed)\n        self._complete(event",
        "        self._complete(event",
    ),
    Fault(
        "added partitions are not owned",
        "session.py",
        "        for number in [each for each in owned.numbers if each not in self.partitions]:",
        "        for number in [each for each in owned.numbers if each not in self.partitions and owned.epoch]:",
    ),
    Fault(
        "a topic that was created again is read on from the old offsets",
        "session.py",
        "            elif topic.replaces(found.topic_id):",
        "            elif topic.replaces(found.topic_id) and found.offset < 0:",
    ),
    Fault(
        "hopeless events go before those that can be on time",
        "queue.py",
        "                if self.hurries or self._mixed >= HOPELESS_EVERY:",
        "                if True:",
    ),
    Fault(
        "hopeless events wait for ever",
        "queue.py",
        "                if self.hurries or self._mixed >= HOPELESS_EVERY:",
        "                if self.hurries:",
    ),
    Fault(
        "events of a halted partition are served",
        "session.py",
        "        queue = self._queue_of(partition.number)\n        queue.drop(partition.number)\n",
        "        queue = self._queue_of(partition.number)\n",
    ),
    Fault(
        "a halted partition is committed",
        "completion.py",
        "        if self.halted:\n            return None\n        entry = self.entry()",
        "        entry = self.entry()",
    ),
    Fault(
        "it reads a clock of its own",
        "slot.py",
        "context.now_s, context.wake_s = now_s, math.inf",
        "context.now_s, context.wake_s = now_s + __import__('time').perf_counter() % 1e-3, math.inf",
    ),
    Fault(
        "the timer is set once and never again",
        "slot.py",
        "        self._armed_s, self._at_once = math.inf, False\n        self._exchange.look",
        "        self._exchange.look",
    ),
)


def found(fault: Fault | None, copy: Path, examples: int, limit_s: float | None = None) -> str:
    """Return the law that fails in a copy of the package with a fault, or how it ends; empty where all hold."""
    path = copy / DISPATCHER / fault.file if fault is not None else None
    source = path.read_text() if path is not None else ""
    if fault is not None and path is not None:
        path.write_text(fault.planted(source))
    environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        for laws in LAWS:
            command = [sys.executable, "-c", _PLAY, laws, str(examples)]
            ended = subprocess.run(
                command, cwd=copy, env=environment, capture_output=True, text=True, timeout=limit_s, check=False
            )
            if ended.returncode:
                lines = ended.stderr.strip().splitlines()
                return f"{laws}: {next((line for line in reversed(lines) if 'Error' in line), lines[-1])}"
    except subprocess.TimeoutExpired:
        return "it does not end"
    finally:
        if path is not None:
            path.write_text(source)
    return ""


def copied(into: Path) -> Path:
    """A copy of what is tested and of its tests."""
    for name in ("inferline_stream", "tests", "topologies"):
        shutil.copytree(ROOT / name, into / name)
    shutil.copy(ROOT / "pyproject.toml", into)
    return into


def measure(quick: bool) -> Figures:
    """How many faults the laws find, and which they do not."""
    faults: Sequence[Fault] = FAULTS[::6] if quick else FAULTS
    examples = 80 if quick else EXAMPLES
    with tempfile.TemporaryDirectory() as folder:
        copies: queue.Queue[Path] = queue.Queue()
        for number in range(cores := len(os.sched_getaffinity(0))):
            copies.put(copied(Path(folder) / str(number)))
        began_s = time.perf_counter()
        without = found(None, copies.queue[0], examples)
        assert not without, f"the laws fail without a fault: {without}"
        limit_s = max(_AT_LEAST_S, _TIMES_AS_LONG * (time.perf_counter() - began_s))

        def played(fault: Fault) -> str:
            copy = copies.get()
            try:
                return found(fault, copy, examples, limit_s)
            finally:
                copies.put(copy)

        with ThreadPoolExecutor(cores) as pool:
            ends = list(pool.map(played, faults))
    missed = [fault.what for fault, end in zip(faults, ends, strict=True) if not end]
    return {"faults": len(faults), "found": len(faults) - len(missed), "missed": "; ".join(missed)}
