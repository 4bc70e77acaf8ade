"""The Faust app beside this file, adopted as it is: its workers are counted, planned for and scaled."""

from __future__ import annotations

from shop import app

from inferline_stream import Pipeline

pipeline = Pipeline.from_faust(app, slo="5s")
