"""Sinks: take events out of a topic."""
