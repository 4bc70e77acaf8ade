"""`run`: profile, plan, start, scale, report."""

from __future__ import annotations

from inferline_stream.cli.options import RunOptions


def run(wanted: RunOptions) -> None:
    """Profile what has no profile yet, plan, start the replicas, and scale them while traffic swings.

    Ctrl-C stops the feed, drains what has arrived and reports; a second Ctrl-C ends everything at once.

    A topology of consumer groups that run already: watch them until it is known what a worker can do, then have the
    number of each group's workers follow its traffic. Ctrl-C leaves them as they are then.
    """
    from inferline_stream.cli.run_steps import run_and_report

    run_and_report(wanted)
