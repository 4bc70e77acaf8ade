"""Discrete-event simulation of a plan on a trace: the latency of every event. Pure."""
