"""`init`: a starter topology with its sample, to be changed step by step."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated

import typer

from inferline_stream.cli.options import Output
from inferline_stream.cli.output import print_json
from inferline_stream.errors import UsageError

_RATES = ((30.0, 20.0), (60.0, 20.0), (25.0, 20.0))
"""The sample's arrivals per second, and for how many seconds."""

_LIVE_RATES = ((30.0, 5.0), (60.0, 3.0), (90.0, 3.0), (120.0, 3.0), (150.0, 3.0), (180.0, 8.0), (25.0, 50.0))
"""What `run` replays: a rise to three times the sample's peak, for the Tuner to follow, and a quiet end, which is long
enough for it to take replicas away again."""

_OPENINGS = ("The screen is", "I find the sound", "After a week the battery was", "For its price the case is")
_VERDICTS = (
    "good",
    "poor",
    "great and clear, as everybody told me it would be",
    "fast",
    "slow, which I did not expect",
)


def init(
    folder: Annotated[Path, typer.Argument(help="where to write topology.py and its sample")] = Path(),
    *,
    output: Output = "table",
) -> None:
    """Write a starter topology: three stages on emulated hardware, with sample arrivals and events."""
    files = {
        "topology.py": _topology(),
        "events.jsonl": _events(),
        "arrivals.csv": _arrivals(_RATES, seed=0),
        "live.csv": _arrivals(_LIVE_RATES, seed=1),
    }
    if present := [name for name in files if os.path.exists(folder / name)]:  # Path.exists raises for a long name
        raise UsageError(f"{folder}: holds {', '.join(present)} already; name another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write into the folder {folder}: {error.strerror}; name another one") from None
    written = folder / "topology.py"
    if output == "json":
        print_json({"topology": str(written), "files": [str(folder / name) for name in files]})
        return
    print(f"Wrote {', '.join(str(folder / name) for name in files)}.")
    print(f"Next: inferline-stream run {shlex.quote(str(folder))}")


def _topology() -> str:
    starter = resources.files("inferline_stream.cli").joinpath("starter-topology", "topology.py")
    return starter.read_text(encoding="utf-8")


def _events() -> str:
    texts = [f"{opening} {verdict}" for opening in _OPENINGS for verdict in _VERDICTS]
    return "".join(json.dumps({"number": i, "text": text}) + "\n" for i, text in enumerate(texts, start=1))


def _arrivals(rates: Sequence[tuple[float, float]], *, seed: int) -> str:
    """Poisson arrivals; the same for everybody."""
    import numpy as np

    from inferline_stream.pipeline.trace import levels_trace

    trace = levels_trace(list(rates), cv=1.0, rng=np.random.default_rng(seed))
    return "arrival_s\n" + "".join(f"{time_s:.4f}\n" for time_s in trace.arrivals_s)
