"""A page of HTML that needs nothing else: its style, its sections, its tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

_STYLE = """
:root { color-scheme: light; }
body { margin: 0 auto; max-width: 900px; padding: 24px 16px 60px; background: #fff; color: #14181f;
       font: 15px/1.5 system-ui, "DejaVu Sans", sans-serif; }
h1 { font-size: 22px; margin: 0 0 4px; } h2 { font-size: 17px; margin: 34px 0 6px; } p { margin: 6px 0; }
.quiet { color: #566070; font-size: 13.5px; }
.verdict { font-size: 17px; font-weight: 600; } .good { color: #00785a; } .bad { color: #b3261e; }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(126px, 1fr)); gap: 10px; margin: 16px 0; }
dl div { border: 1px solid #dfe3ea; border-radius: 8px; padding: 8px 12px; }
dt { color: #566070; font-size: 13px; }
dd { margin: 0; font-size: 21px; font-weight: 600; font-variant-numeric: tabular-nums; }
dd small { display: block; font-size: 12.5px; font-weight: 400; color: #566070; }
table { border-collapse: collapse; width: 100%; font-size: 13.5px; font-variant-numeric: tabular-nums; }
th { text-align: left; color: #566070; font-weight: 500; }
th, td { padding: 4px 8px 4px 0; border-bottom: 1px solid #dfe3ea; vertical-align: top; }
td.n, th.n { text-align: right; white-space: nowrap; padding-right: 16px; } tr.ours { font-weight: 600; }
figure { margin: 12px 0; } .scroll { overflow-x: auto; }
svg text { fill: #566070; font: 12px system-ui, "DejaVu Sans", sans-serif; } svg .grid { stroke: #dfe3ea; }
svg :is(.live, .p95, .p50, .plan, .coarse, .ready) { fill: none; stroke-width: 2; stroke-linejoin: round; }
svg .live { stroke: #0067a3; } svg .p95 { stroke: #3d8fc4; } svg .p50 { stroke: #6f8299; }
svg .plan { stroke: #6b7685; stroke-dasharray: 6 4; } svg .coarse { stroke: #9a5b00; stroke-dasharray: 2 4; }
svg .ready { stroke: #00704f; stroke-dasharray: 3 3; } svg .slo { stroke: #b3261e; stroke-dasharray: 2 3; }
svg .live-text { fill: #0067a3; font-weight: 600; } svg .slo-text { fill: #b3261e; } svg .coarse-text { fill: #9a5b00; }
svg .dot { fill: #0067a3; } svg .other { fill: #9a5b00; } svg .hindsight { fill: #00704f; }
svg .readout line { stroke: #566070; } svg .readout rect { fill: #14181f; } svg .readout text { fill: #fff; }
@media print { h2 { break-after: avoid; } figure, tr { break-inside: avoid; } }
"""


def page_of(title: str, parts: Iterable[str]) -> str:
    """Return a page of HTML that needs nothing else, with these parts one below the other."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<style>{_STYLE}</style></head><body><main>\n{''.join(parts)}</main></body></html>\n"
    )


def section(title: str, body: str) -> str:
    """Return a part of a page, with its heading."""
    return f"<section><h2>{title}</h2>{body}</section>\n"


def table_of(
    heads: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: Sequence[int] = (), ours: Sequence[str] = ()
) -> str:
    """Return a table of text; columns of ``numbers`` to the right, rows that begin with one of ``ours`` in bold."""

    def line(cells: Sequence[str], tag: str) -> str:
        marks = (f"<{tag}{' class=n' if at in numbers else ''}>{escape(c)}</{tag}>" for at, c in enumerate(cells))
        return f"<tr{' class=ours' if cells[0] in ours else ''}>{''.join(marks)}</tr>"

    body = "".join(line(row, "td") for row in rows)
    return f"<div class=scroll><table><thead>{line(heads, 'th')}</thead><tbody>{body}</tbody></table></div>"
