"""What changes from one plan to another, for people: a table, or Markdown for a pull request; and what it may cost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from inferline_stream.errors import GateFailed, InvalidFile, UsageError
from inferline_stream.pipeline.hardware import Catalogue
from inferline_stream.pipeline.plan import Plan, in_words
from inferline_stream.pipeline.units import format_duration
from inferline_stream.planner.plan_diff import PlanDifference, difference
from inferline_stream.planner.plan_document import plan_from_bytes

if TYPE_CHECKING:
    from rich.table import Table

HOURS_PER_MONTH = 730
"""365 days of 24 hours in 12 months, as clouds quote prices a month."""

Markdown = Annotated[bool, typer.Option("--markdown", help="print what changes as Markdown, for a pull request")]
Budget = Annotated[
    float | None,
    typer.Option(
        min=0, metavar="DOLLARS", help="end with exit code 6 where the plan's replicas cost more than this a month"
    ),
]


def plan_in(file: Path) -> Plan:
    """Read a plan that `plan --save` wrote.

    Raises:
        InvalidFile: it cannot be read, or is no plan.
    """
    try:
        return plan_from_bytes(file.read_bytes(), str(file))
    except OSError as error:
        raise InvalidFile(f"{file}: cannot be read ({error.strerror}); give a plan written by `plan`") from None


def check_budget(after: Plan, budget: float | None) -> None:
    """Refuse a plan that is too dear.

    Args:
        after: the plan.
        budget: dollars a month; None for any cost.

    Raises:
        GateFailed: it costs more.
    """
    cost = after.cost_per_hour * HOURS_PER_MONTH
    if budget is not None and cost > budget:
        raise GateFailed(
            f"the plan costs ${cost:,.2f} a month, which is more than --budget ${budget:,.2f}; loosen the SLO, allow "
            "cheaper hardware, or raise the budget"
        )


@dataclass(frozen=True, slots=True)
class PlanChanges:
    """Two plans side by side, with the names under which people know them.

    Args:
        before: the first plan.
        after: the second plan.
        names: of both.
        found: their difference.
    """

    before: Plan
    after: Plan
    names: tuple[str, str]
    found: PlanDifference

    @classmethod
    def between(cls, before: Plan, after: Plan, names: tuple[str, str], kinds: Catalogue) -> PlanChanges:
        """Compare them at the prices of one catalogue.

        Raises:
            UsageError: hardware that the catalogue does not list.
        """
        try:
            found = difference(before, after, kinds)
        except KeyError as error:
            raise UsageError(
                f"hardware {error.args[0]!r} has no price; give --topology, whose hardware it is"
            ) from None
        return cls(before, after, names, found)

    def table(self) -> Table:
        """Return them for a terminal, in dollars per hour."""
        from rich.table import Table

        first, second = self.names
        table = Table("stage", first, second, title=f"{first} → {second}")
        table.add_column("$/h", justify="right")
        for stage in self.found.stages:
            style = "dim" if stage.unchanged else "bold"
            now = "the same" if stage.unchanged else in_words(stage.after) or "–"
            table.add_row(
                stage.stage, in_words(stage.before) or "–", now, f"{stage.cost_change_per_hour:+.4f}", style=style
            )
        table.add_section()
        costs = (f"${plan.cost_per_hour:.4f}/h" for plan in (self.before, self.after))
        table.add_row("all", *costs, f"{self.found.cost_change_per_hour:+.4f}")
        for name, *values in self._figures():
            table.add_row(name, *values, "")
        return table

    def markdown(self, budget: float | None = None) -> str:
        """Return them for a pull request, in dollars a month, with what the budget says where there is one."""
        change = self.found.cost_change_per_hour * HOURS_PER_MONTH
        cost = self.after.cost_per_hour * HOURS_PER_MONTH
        costs = (cost - change, cost)  # both at the prices of today
        share = f", {change / costs[0]:+.1%}" if costs[0] else ""
        dearer = f"{_dollars(change, signed=True)}{share}" if change else "as before"
        lines = [
            f"### `{_cell(self.after.pipeline)}`: {_dollars(costs[1])} a month ({dearer})",
            "",
            f"| | {_cell(self.names[0])} | {_cell(self.names[1])} | $ a month |",
            "|---|---|---|--:|",
        ]
        for stage in self.found.stages:
            now = "the same" if stage.unchanged else f"**{_cell(in_words(stage.after)) or '–'}**"
            more = _dollars(stage.cost_change_per_hour * HOURS_PER_MONTH, signed=True)
            lines.append(f"| {_cell(stage.stage)} | {_cell(in_words(stage.before)) or '–'} | {now} | {more} |")
        lines.append(f"| all | {_dollars(costs[0])} | {_dollars(costs[1])} | {_dollars(change, signed=True)} |")
        lines += (f"| {name} | {was} | {now} | |" for name, was, now in self._figures())
        if self.found.unchanged:
            lines += ["", "No replica changes."]
        if budget is not None:
            over = costs[1] - budget
            held = f"**over it by {_dollars(over)}**" if over > 0 else f"{_dollars(-over)} below it"
            lines += ["", f"Budget: {_dollars(budget)} a month, {held}."]
        return "\n".join(lines) + "\n"

    def _figures(self) -> Iterator[tuple[str, str, str]]:
        """What both were made for, and what they promise: name, before, after."""
        first, second = self.before, self.after
        yield "SLO", format_duration(first.slo_s), format_duration(second.slo_s)
        yield "predicted P99", format_duration(first.predicted_p99_s), format_duration(second.predicted_p99_s)
        yield "events/s", f"{first.arrival_rate:.1f}", f"{second.arrival_rate:.1f}"
        if (first.reserve, second.reserve) != (None, None):
            yield "reserve", _reserve(first), _reserve(second)


def _reserve(plan: Plan) -> str:
    return "by odds" if plan.reserve is None else f"{plan.reserve:g} times"


def _dollars(amount: float, *, signed: bool = False) -> str:
    """An amount; of a change, its sign before the dollar."""
    shown = f"${abs(amount):,.2f}"
    if not signed or shown == "$0.00":
        return shown
    return f"{'+' if amount > 0 else '−'}{shown}"


def _cell(text: str) -> str:
    """Text that stays in its cell: names and file names are people's."""
    return text.replace("|", "\\|").replace("\n", " ")
