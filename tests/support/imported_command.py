"""Imported once, by the process that `forked_command` forks from: the command, what its commands import, kernels."""

from __future__ import annotations

import signal

from typer.testing import CliRunner

import inferline_stream.cli.plan_steps
import inferline_stream.cli.run_steps  # noqa: F401
from inferline_stream.cli.main import app
from inferline_stream.estimator.warmup import compile_kernels

compile_kernels()
CliRunner().invoke(app, ["plan", "--help"])  # Typer imports the most when it first parses and first prints
signal.signal(signal.SIGTERM, signal.SIG_DFL)  # as a command finds it
