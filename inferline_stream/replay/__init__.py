"""Closed loop in simulated time: any policy on any trace, its cost and misses. Pure."""
