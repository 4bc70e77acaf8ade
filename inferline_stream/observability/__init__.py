"""Metrics, alert rules, dashboards, the page's data."""
