"""A stage in the replica, one behind a server that each replica starts, and one that waits: all sleep, on no core.

The server is slower the more it has to do at once. A replica has room for about 50, 60 and 50 events per second.
"""

import sys
from pathlib import Path

from inferline_stream import Hardware, OpenInference, Pipeline, Sample, Stage, Topic

SERVER = f"env PYTHONPATH={Path(__file__).parents[3]} {sys.executable} -m tests.support.model_server"
TAKES_S, SLOWS_S = 0.05, 0.02
"""Of the server: a request alone, and what each one beside it adds."""


def embed(numbers: list[int]) -> list[int]:
    return numbers


def asked(number: int) -> dict[str, int]:
    return {"number": number}


def answered(outputs: dict) -> int:
    return int(outputs["doubled"])


async def compose(numbers: list[int]) -> list[int]:
    return [number + 1 for number in numbers]


embedding = Stage(
    "embed",
    embed,
    hardware=["emulated-cpu"],
    emulated={1: "24ms", 2: "40ms", 4: "76ms"},
    max_batch_size=4,
    ordered=False,
)
ranking = Stage(
    "rank",
    server=OpenInference(
        "http://127.0.0.1:{port}",
        model="double",
        request=asked,
        response=answered,
        command=f"{SERVER} {TAKES_S} {SLOWS_S} {{port}}",
    ),
    after=[embedding],
    hardware=["client"],
    max_batch_size=2,
    concurrency=4,
    ordered=False,
)
composing = Stage(
    "compose",
    compose,
    after=[ranking],
    hardware=["emulated-cpu"],
    emulated={1: "80ms"},
    max_batch_size=1,
    concurrency=4,
    ordered=False,
)

pipeline = Pipeline(
    "served",
    slo="500ms",
    source=Topic("numbers", partitions=8),
    sink=Topic("answers", partitions=4),
    stages=[embedding, ranking, composing],
    sample=Sample(arrivals="arrivals.csv", events="numbers.jsonl"),
    hardware=[Hardware("client", 0.01, cores=0)],  # measured, unlike emulated kinds, on which nothing contends
)
