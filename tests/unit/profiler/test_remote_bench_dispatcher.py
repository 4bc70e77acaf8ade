"""The profiler's dispatcher in a cluster, without a Kafka."""

import asyncio
import socket
from pathlib import Path

from inferline_stream.dataplane.process_specs import DispatcherSpec
from inferline_stream.dataplane.routes import routes_of
from inferline_stream.dataplane.topology_loader import load_topology
from inferline_stream.profiler.bench_messages import Answered, Assembler, Standing, decode_from_bench
from inferline_stream.profiler.remote_bench_dispatcher import RemoteBench
from inferline_stream.profiler.worker_messages import EventOutcome, Outcomes

TOPOLOGY = Path(__file__).parent / "odd_stages" / "topology.py"
SPEC = DispatcherSpec("busy-0-ab12", 0, routes_of(load_topology(TOPOLOGY), "busy"), "")


class Kafka:
    """A producer to which other tasks come in between."""

    def __init__(self) -> None:
        self.records: list[tuple[bytes, bytes]] = []

    async def deliver(self, topic: str, value: bytes, *, key: bytes) -> None:
        await asyncio.sleep(0)
        self.records.append((key, value))


async def test_pieces_of_two_messages_of_a_dispatcher_do_not_mix() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        bench, kafka, assembler = RemoteBench(SPEC, ours, lambda: None), Kafka(), Assembler()
        said = (Answered(1, Outcomes([EventOutcome(b"x" * (3 << 19), [])])), Standing("one"), Standing("two"))
        await asyncio.gather(*(bench._say(kafka, message) for message in said))  # type: ignore[arg-type]
    found = [whole for record in kafka.records if (whole := assembler.add(*record)) is not None]
    assert [decode_from_bench(whole) for whole in found] == list(said)
