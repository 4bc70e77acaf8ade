"""Moves records: consume, batch, run, route, join, commit, hand over."""
