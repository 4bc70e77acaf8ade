"""Cuts this example's files: passages from the guides in docs/, and arrivals from the moderation example's.

    python prepare.py

The guides go on changing; the passages are those of the day on which this ran last.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
from passages import passages, sentence_encoder

from inferline_stream.dataplane.sample_files import read_arrivals

HERE = Path(__file__).parent
DOCS = HERE.parents[1] / "docs"
GUIDES = ("explanation/*.md", "how-to/*.md", "reference/topology.md")

SHORTEST, LONGEST = 80, 240
"""Characters of a passage."""

SLOW_DOWN = 2.5
"""The moderation example has its trace five times as fast; twice is enough work for two cores here."""
PLANNED_S, LIVE_S = (0.0, 180.0), (0.0, 150.0)
"""Windows of the two traces, after that."""


def paragraphs(guide: str) -> list[str]:
    """Return the plain paragraphs of a guide: no code, tables or lists, and links by their text alone.

    A heading that asks something begins the paragraph that answers it; other headings are left out.
    """
    text = re.sub(r"```.*?```", "", guide, flags=re.DOTALL)
    text = re.sub(r"^#+ (.*\?)$", r"\n\1", text, flags=re.MULTILINE)
    text = re.sub(r"^#.*$", "\n", text, flags=re.MULTILINE)
    blocks = [" ".join(block.split()) for block in text.split("\n\n")]
    plain = [re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", block) for block in blocks]
    return [block for block in plain if not block.startswith(("|", "-", "1.", "!"))]


def shortened(paragraph: str) -> str:
    """Return as many of its first sentences, whole, as are not too long together; none where these are too short."""
    text = ""
    for sentence in re.split(r"(?<=[.:?]) (?=[A-Z`])", paragraph):
        if len(f"{text} {sentence}".strip()) > LONGEST:
            break
        text = f"{text} {sentence}".strip()
    return text if len(text) >= SHORTEST else ""


def main() -> None:
    """Write passages.jsonl, passages.npy, arrivals.csv and live.csv beside this file."""
    files = [file for pattern in GUIDES for file in sorted(DOCS.glob(pattern))]
    found = {
        text: file.relative_to(DOCS).as_posix()
        for file in files
        for each in paragraphs(file.read_text())
        if (text := shortened(each))
    }
    lines = [json.dumps({"page": page, "text": text}, ensure_ascii=False) for text, page in found.items()]
    (HERE / "passages.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")

    encode = sentence_encoder()
    embedded = np.concatenate([encode([text]) for text in passages()])
    np.save(HERE / "passages.npy", np.rint(embedded * 127).astype(np.int8))

    for name, window_s in (("arrivals", PLANNED_S), ("live", LIVE_S)):
        trace = read_arrivals(HERE.parent / "moderation" / f"{name}.csv").sped_up(1 / SLOW_DOWN).window(*window_s)
        (HERE / f"{name}.csv").write_text("arrival_s\n" + "".join(f"{t:.6f}\n" for t in trace.arrivals_s))


if __name__ == "__main__":
    main()
