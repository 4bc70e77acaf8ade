"""Benchmarks: `python -m tests.benchmarks NAME [--quick] [--output table|json]`."""
