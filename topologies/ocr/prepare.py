"""Makes this example's pages from text, and its arrivals from the moderation example's.

Needs Pillow, and a folder with DejaVu and STIX: matplotlib's wheel has one, `matplotlib/mpl-data/fonts/ttf`.

    python prepare.py FONTS
"""

from __future__ import annotations

import base64
import io
import json
import random
import sys
import textwrap
from pathlib import Path

from PIL import Image, ImageDraw, ImageFilter, ImageFont

HERE = Path(__file__).parent
PASSAGES = HERE.parent / "assistant" / "passages.jsonl"

FONTS = {
    "sans": ("DejaVuSans.ttf", 15),
    "sans bold": ("DejaVuSans-Bold.ttf", 14),
    "serif": ("DejaVuSerif.ttf", 15),
    "serif italic": ("DejaVuSerif-Italic.ttf", 15),
    "mono": ("DejaVuSansMono.ttf", 14),
    "times": ("STIXGeneral.ttf", 18),
}
"""File and size in pixels, by the name that a page begins with."""

PAGES_PER_FONT = 6
WIDTH, MARGIN, LEADING = 440, 24, 26
CHARACTERS = 44
"""Most in a line."""
MOST_TILTED = 0.8
"""Degrees that a page lies askew, at most."""

EVERY = 24
"""Arrival that is kept of the moderation example's: reading a page takes as much as so many posts."""


def wrapped(passage: str) -> list[str]:
    """A passage as lines, in the characters that every one of the fonts has."""
    return textwrap.wrap(passage.encode("ascii", "ignore").decode().replace("`", "'"), CHARACTERS)


def drawn(lines: list[str], font: str, rng: random.Random, folder: Path) -> Image.Image:
    """A page as a scanner gives it: a little askew, a little out of focus, in 16 shades of grey."""
    file, size = FONTS[font]
    height = 2 * MARGIN + LEADING * max(len(lines), 1)
    page = Image.new("L", (WIDTH, height), 248)
    pen, face = ImageDraw.Draw(page), ImageFont.truetype(str(folder / file), size)
    for number, line in enumerate(lines):
        pen.text((MARGIN, MARGIN + LEADING * number), line, fill=24, font=face)
    angle = rng.uniform(-MOST_TILTED, MOST_TILTED)
    page = page.rotate(angle, Image.Resampling.BICUBIC, fillcolor=248).filter(ImageFilter.GaussianBlur(0.5))
    return page.quantize(16)


def png(page: Image.Image) -> bytes:
    """The picture as a file's bytes."""
    file = io.BytesIO()
    page.save(file, "PNG", optimize=True)
    return file.getvalue()


def main(folder: Path) -> None:
    """Write pages.jsonl, known.jsonl, page.png, arrivals.csv and live.csv beside this file, in a folder's fonts."""
    rng = random.Random(2026)  # noqa: S311  drawing pages, no secret
    passages = [json.loads(line)["text"] for line in PASSAGES.read_text(encoding="utf-8").splitlines()]
    names = [f"{font} {number}" for font in FONTS for number in range(PAGES_PER_FONT)]
    rng.shuffle(passages)
    known = {name: wrapped(" ".join(passages.pop() for _ in range(rng.choice((1, 1, 2))))) for name in names}
    pages = {name: png(drawn(lines, name.rpartition(" ")[0], rng, folder)) for name, lines in known.items()}
    known["blank"], pages["blank"] = [], png(drawn([], "sans", rng, folder))
    order = rng.sample(list(pages), len(pages))
    rows = [{"name": name, "image": base64.b64encode(pages[name]).decode()} for name in order]
    (HERE / "pages.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (HERE / "known.jsonl").write_text("".join(json.dumps({"page": n, "lines": known[n]}) + "\n" for n in known))
    (HERE / "page.png").write_bytes(pages["serif 0"])
    for name in ("arrivals.csv", "live.csv"):
        head, *rows_s = (HERE.parent / "moderation" / name).read_text().split()
        (HERE / name).write_text("\n".join([head, *rows_s[::EVERY]]) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
