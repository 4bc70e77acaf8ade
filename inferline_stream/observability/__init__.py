"""Metrics, alert rules, the live page."""
