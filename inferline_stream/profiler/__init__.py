"""Measures stages on real hardware."""
