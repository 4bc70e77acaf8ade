"""Cuts this example's files from their sources; see README.md for what they are and how they are licensed.

    python prepare.py AZURE_CSV TWEETS SPANISH_FOLDER IRISH_FOLDER
    python prepare.py  # measures the fallback of `duplicate` on the posts that are there

AZURE_CSV: `AzureLLMInferenceTrace_conv.csv` of the Azure Public Dataset, may be gzipped.
TWEETS: `tweets_GroundTruth.txt` of the archive in vaderSentiment's source distribution.
SPANISH_FOLDER, IRISH_FOLDER: `usr/share/games/fortunes/es` and `/ga` of Debian's fortunes-es and fortunes-ga.
"""

from __future__ import annotations

import html
import json
import random
import sys
from pathlib import Path

import numpy as np

from inferline_stream.dataplane.sample_files import read_arrivals
from inferline_stream.pipeline.trace import Trace

HERE = Path(__file__).parent

SPEED_UP = 5.0
PLANNED_S = (0.0, 875.0)
"""The first quarter of the trace, in its own seconds: what the Planner may know."""
LIVE_S = (1480.0, 2480.0)
"""Later: the rise to the trace's busiest minutes and the fall after them."""

TWEETS, SPANISH = 2400, 1000
LONGEST = 200
HEADLINES = ("Winner Profiles", "resigns as")
"""Posts with these words are news of companies: nothing to moderate."""
SPANISH_FILES = ("refranes.fortunes", "proverbios.fortunes", "amistad.fortunes", "sabiduria.fortunes")


def cut(trace: Trace, window_s: tuple[float, float]) -> str:
    """A window of the trace as CSV, sped up."""
    arrivals_s = trace.window(*window_s).sped_up(SPEED_UP).arrivals_s
    return "arrival_s\n" + "".join(f"{t:.6f}\n" for t in arrivals_s)


def tweets(path: Path) -> list[str]:
    """The texts of the tweets; their authors are called @anonymous there."""
    rows = path.read_text(encoding="utf-8", errors="ignore").splitlines()
    return [html.unescape(html.unescape(row.split("\t", 2)[2])) for row in rows]


def fortunes(files: list[Path]) -> list[str]:
    """The sayings of a fortune file, without their attributions, each on one line."""
    sayings = [saying for file in files for saying in file.read_text(encoding="utf-8").split("\n%\n")]
    return [" ".join(saying.split("\t\t--")[0].split()) for saying in sayings]


def short(texts: list[str], most: int) -> list[str]:
    """Different texts of readable length, no more than `most`, drawn at random but always the same."""
    fitting = sorted(
        {
            text.strip()
            for text in texts
            if 10 <= len(text.strip()) <= LONGEST and "@" not in text.replace("@anonymous", "")
        }
    )
    return random.Random(2014).sample(fitting, min(most, len(fitting)))  # noqa: S311  drawing a sample, no secret


def main(azure: str, tweets_file: str, spanish: str, irish: str) -> None:
    """Write arrivals.csv, live.csv, posts.jsonl and known.npy beside this file."""
    from sentences import SentenceEncoder
    from topology import KNOWN_EVERY

    trace = read_arrivals(azure)
    (HERE / "arrivals.csv").write_text(cut(trace, PLANNED_S))
    (HERE / "live.csv").write_text(cut(trace, LIVE_S))

    posts = short(tweets(Path(tweets_file)), TWEETS)
    posts += short(fortunes([Path(spanish) / name for name in SPANISH_FILES]), SPANISH)
    posts += short(fortunes([Path(irish) / "proverbs"]), 100)
    random.Random(2014).shuffle(posts)  # noqa: S311
    posts = [text for text in posts if not any(words in text for words in HEADLINES)]
    (HERE / "posts.jsonl").write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in posts))

    known = SentenceEncoder()(posts[::KNOWN_EVERY])
    np.save(HERE / "known.npy", np.rint(known * 127).astype(np.int8))


def measure_fallback() -> str:
    """How often `duplicate` and its fallback agree on the sample, in words."""
    from topology import KNOWN_EVERY, DuplicateSearch, Tagged, TrigramSearch

    posts = [Tagged(json.loads(line)["text"], "") for line in (HERE / "posts.jsonl").read_text().splitlines()]
    batches = [posts[start : start + 8] for start in range(0, len(posts), 8)]
    search, fallback = DuplicateSearch(), TrigramSearch()
    found, by_fallback = (np.concatenate([run(batch) for batch in batches]) for run in (search, fallback))
    new = np.arange(len(posts)) % KNOWN_EVERY > 0
    return (
        f"agree on {np.mean(found == by_fallback):.1%} of {len(posts)} posts; of the {new.sum()} that are not known "
        f"{found[new].sum()} are duplicates, of which the fallback finds {(found & by_fallback)[new].sum()}, "
        f"and {(by_fallback & ~found)[new].sum()} others"
    )


if __name__ == "__main__":
    if sys.argv[1:]:
        main(*sys.argv[1:])
    else:
        print(measure_fallback())
