"""The door to matplotlib: axes in our style, and the file that they are written to.

Colours are Okabe and Ito's, which colour-blind people tell apart; lines differ in their dashes and marks too, so that
a copy in grey can be read. The same input gives the same bytes.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inferline_stream.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, VERMILION, GREEN, PURPLE, SKY, ORANGE = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00"
INK, QUIET, LINE = "#14181f", "#566070", "#dfe3ea"
BAD = "#b3261e"
"""What is above the SLO."""

Target = Path | io.BytesIO
"""A file that ends in .png or .svg, or a buffer that takes an SVG."""

WIDTH_IN = 8.0
SUFFIXES = (".png", ".svg")

_STYLE: dict[str, Any] = {
    "font.family": ["sans-serif"],
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.0,
    "text.color": INK,
    "figure.facecolor": "white",
    "figure.dpi": 150,
    "axes.edgecolor": QUIET,
    "axes.labelcolor": INK,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.8,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "svg.fonttype": "none",
    "svg.hashsalt": "inferline-stream",
}


@dataclass(frozen=True, slots=True)
class LineStyle:
    """How one line of several is drawn."""

    colour: str
    dashes: str
    mark: str


_LOOKS = (
    LineStyle(BLUE, "-", "o"),
    LineStyle(VERMILION, "--", "s"),
    LineStyle(GREEN, "-.", "^"),
    LineStyle(PURPLE, ":", "D"),
    LineStyle(ORANGE, "-", "v"),
    LineStyle(SKY, "--", "P"),
    LineStyle(QUIET, "-.", "X"),
)


def line_styles() -> Iterator[LineStyle]:
    """Looks for one line after the other; after seven they repeat."""
    return itertools.cycle(_LOOKS)


def check_file(file: Path) -> None:
    """Say before long work what would keep a picture from being written.

    Raises:
        UsageError: the name ends in neither .png nor .svg, its folder does not exist, or matplotlib is missing.
    """
    if file.suffix.lower() not in SUFFIXES:
        raise UsageError(f"{file}: pictures are written as .png or .svg; give a name that ends so")
    if not file.parent.is_dir():
        raise UsageError(f"{file}: there is no folder {file.parent}; make it first")
    _matplotlib()


@contextmanager
def drawing(
    file: Target, rows: Sequence[float], *, columns: int = 1, title: str = "", share_x: bool = False
) -> Iterator[list[list[Axes]]]:
    """Axes to draw on, by row and column; the picture is written at the end of the block.

    Args:
        file: where the picture goes.
        rows: height of each row in inches.
        columns: axes per row.
        title: above all of them.
        share_x: the axes of a column have one x axis.

    Raises:
        UsageError: see `check_file`.
    """
    if isinstance(file, Path):
        check_file(file)
    matplotlib = _matplotlib()
    with matplotlib.rc_context(_STYLE):
        from matplotlib.figure import Figure

        height_in = sum(rows) + (0.35 if title else 0.1)
        figure: Figure = Figure(figsize=(WIDTH_IN, height_in), layout="constrained")
        axes = figure.subplots(
            len(rows), columns, squeeze=False, sharex="col" if share_x else False, height_ratios=list(rows)
        )
        if title:
            figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
        yield [list(row) for row in axes]
        figure.align_ylabels()
        _write(figure, file)


def plain_log(axes: Axes, which: str) -> None:
    """A log axis whose ticks are plain numbers, at 1, 2 and 5 of every decade.

    Args:
        axes: where.
        which: ``"x"`` or ``"y"``.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.axes.set(**{f"{which}scale": "log"})
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 200 * low else (1.0,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _write(figure: Figure, file: Target) -> None:
    kind = "svg" if isinstance(file, io.BytesIO) else file.suffix.lower()[1:]
    written = io.BytesIO()
    figure.savefig(written, format=kind, metadata={"Date": None} if kind == "svg" else {"Software": None})
    if isinstance(file, io.BytesIO):
        file.write(written.getvalue())
    else:
        file.write_bytes(written.getvalue())


def _matplotlib() -> Any:
    try:
        import matplotlib as found
    except ImportError:
        raise UsageError(
            "pictures need matplotlib, which is not installed: pip install 'inferline-stream[plots]'"
        ) from None
    return found
