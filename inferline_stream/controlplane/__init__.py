"""Arrivals in, decisions out."""
