"""Read the text of page images: find the lines of a page, read them in batches, and put the page's text together.

A page has none to eleven lines: one event becomes many, and they become one again.
"""

from __future__ import annotations

from pathlib import Path

from msgspec import Struct

from inferline_stream import Isolation, Pipeline, Sample, Stage, Topic

HERE = Path(__file__).parent


class Page(Struct):
    """What arrives: a PNG, in base64 in the JSON."""

    name: str
    image: bytes


class Line(Struct):
    """A line of a page: its grey pixels, row by row, and its corners on the page, clockwise from the upper left."""

    page: str
    pixels: bytes
    width: int
    box: list[tuple[float, float]]


class Words(Struct):
    """What a line says, and how sure the model is, 0 to 1."""

    page: str
    text: str
    confidence: float
    box: list[tuple[float, float]]


class Text(Struct):
    """What leaves: a page's lines from top to bottom. A page without lines has no name either."""

    page: str
    lines: list[str]
    confidence: float
    boxes: list[list[tuple[float, float]]]


class FindLines:
    """Where the lines of a page are: a segmentation network, and boxes around what it marks as text."""

    def __init__(self) -> None:
        from engine import engine, pixels
        from rapidocr.main import RapidOCRError

        self._engine, self._pixels, self._nothing = engine(), pixels, RapidOCRError
        self._lines(Page("warms up", (HERE / "page.png").read_bytes()))

    def __call__(self, pages: list[Page]) -> list[list[Line]]:
        return [self._lines(page) for page in pages]

    def _lines(self, page: Page) -> list[Line]:
        try:
            crops, found = self._engine.detect_and_crop(self._pixels(page.image), {})
        except self._nothing:  # no text on it
            return []
        return [
            Line(page.name, crop[:, :, 0].tobytes(), crop.shape[1], [(float(x), float(y)) for x, y in box])
            for crop, box in zip(crops, found.boxes, strict=True)
        ]


class ReadLines:
    """What lines say: a network that gives a character, or none, for each slice of a line."""

    def __init__(self) -> None:
        import numpy as np
        from engine import engine

        self._engine, self._numpy = engine(), np
        self([Line("warms up", bytes(48 * 96), 96, [])])

    def __call__(self, lines: list[Line]) -> list[Words]:
        np = self._numpy
        grey = [np.frombuffer(line.pixels, np.uint8).reshape(-1, line.width) for line in lines]
        read = self._engine.recognize_txt([np.stack([each] * 3, axis=2) for each in grey])
        return [
            Words(line.page, text, float(score), line.box)
            for line, text, score in zip(lines, read.txts, read.scores, strict=True)
        ]


def put_together(pages: list[list[Words]]) -> list[Text]:
    """Join the lines of each page."""
    return [_text(lines) for lines in pages]


def _text(lines: list[Words]) -> Text:
    if not lines:
        return Text("", [], 1.0, [])
    least = min(line.confidence for line in lines)
    return Text(lines[0].page, [line.text for line in lines], least, [line.box for line in lines])


# Replicas seal themselves before their first record: the models lie among Python's packages.
sandbox = Isolation("sandbox", reads=("engine.py", "page.png"), on_unsupported="degrade")

find = Stage(
    "find", FindLines, many=True, most=64, hardware=["cpu-0.25", "cpu-0.5"], max_batch_size=4, isolation=sandbox
)
read = Stage(
    "read", ReadLines, after=[find], hardware=["cpu-0.25", "cpu-0.5", "cpu-1"], max_batch_size=8, isolation=sandbox
)
text = Stage("text", put_together, after=[read.gathered()], hardware=["cpu-0.1"], isolation=sandbox)

pipeline = Pipeline(
    "ocr",
    slo="3s",
    source=Topic("pages"),
    sink=Topic("texts"),
    stages=[find, read, text],
    sample=Sample(arrivals="arrivals.csv", events="pages.jsonl", replay="live.csv"),
)
