"""Benchmarks: `python -m tests.benchmarks NAME [--quick] [--output table|json]`."""

Figures = dict[str, float | int | str | None]
"""By name; one that is not available on this machine is None."""
