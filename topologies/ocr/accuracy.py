"""Compares what was read with what the pages say, and prints the share of right characters for each font.

    python accuracy.py [TEXTS] [--picture FILE]

TEXTS: what a run's sink was given, as `inferline_stream.connectors.sinks.jsonl` writes it. Without it the stages read
the pages here, one after the other.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path

import msgspec

from inferline_stream.dataplane.topology_loader import load_topology

HERE = Path(__file__).parent


def edits(read: str, said: str) -> int:
    """Characters to insert, delete or replace to make one text the other: Levenshtein's distance."""
    row = list(range(len(said) + 1))
    for number, character in enumerate(read, 1):
        before, row[0] = row[0], number
        for at, other in enumerate(said, 1):
            before, row[at] = row[at], min(row[at] + 1, row[at - 1] + 1, before + (character != other))
    return row[-1]


def read_here() -> list[dict]:
    """What the example's stages read, called as replicas call them."""
    pipeline = load_topology(HERE)
    find, read, text = (stage.run() if isinstance(stage.run, type) else stage.run for stage in pipeline.stages)
    from topology import Page

    pages = [msgspec.json.decode(row, type=Page) for row in (HERE / "pages.jsonl").read_bytes().splitlines()]
    return msgspec.to_builtins(text([read(lines) if lines else [] for lines in find(pages)]))


def read_by_run(file: Path) -> list[dict]:
    """What a run read, from the file of its sink."""
    return [json.loads(row)["value"] for row in file.read_text(encoding="utf-8").splitlines()]


def by_font(texts: list[dict]) -> dict[str, tuple[int, int, int]]:
    """Of each font, and of all: pages read, characters on them, and edits that make what was read right."""
    rows = (json.loads(row) for row in (HERE / "known.jsonl").read_text(encoding="utf-8").splitlines())
    known = {row["page"]: "\n".join(row["lines"]) for row in rows}
    known[""] = ""  # a page without lines has no name
    sums: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    for each in texts:
        said = known[each["page"]]
        for font in (each["page"].rpartition(" ")[0] or "blank", "all"):
            for at, more in enumerate((1, len(said), edits("\n".join(each["lines"]), said))):
                sums[font][at] += more
    return {font: (pages, characters, wrong) for font, (pages, characters, wrong) in sums.items()}


def draw_boxes(texts: list[dict], page: str, file: Path) -> None:
    """Draw a page with the boxes of its lines, and beside it what was read there."""
    import io

    from PIL import Image, ImageDraw, ImageFont

    (read,) = [each for each in texts if each["page"] == page][:1]
    rows = (msgspec.json.decode(row) for row in (HERE / "pages.jsonl").read_bytes().splitlines())
    (png,) = (msgspec.convert(row["image"], bytes) for row in rows if row["name"] == page)
    with Image.open(io.BytesIO(png)) as scan:
        picture = Image.new("RGB", (2 * scan.width, scan.height), "white")
        picture.paste(scan.convert("RGB"))
    pen, face = ImageDraw.Draw(picture), ImageFont.load_default(15)
    for box, line in zip(read["boxes"], read["lines"], strict=True):
        corners = [(x, y) for x, y in box]
        pen.polygon(corners, outline=(200, 40, 40), width=2)
        pen.text((picture.width / 2 + 12, corners[0][1] + 2), line, fill=(20, 60, 140), font=face)
    picture.save(file, optimize=True)


def main() -> None:
    """Print the table, and draw the picture if asked to."""
    parser = argparse.ArgumentParser(description="Share of characters that were read right, by font.")
    parser.add_argument("texts", type=Path, nargs="?", help="file of the sink; without it the pages are read here")
    parser.add_argument("--picture", type=Path, help="draw one page with its boxes into this file")
    given = parser.parse_args()
    texts = read_by_run(given.texts) if given.texts else read_here()
    print(f"{'font':14}{'pages':>6}{'characters':>12}{'right':>9}")
    for font, (pages, characters, wrong) in sorted(by_font(texts).items()):
        right = 1 - wrong / characters if characters else float(not wrong)
        print(f"{font:14}{pages:6}{characters:12}{right:9.2%}")
    if given.picture:
        draw_boxes(texts, "serif italic 0", given.picture)


if __name__ == "__main__":
    main()
