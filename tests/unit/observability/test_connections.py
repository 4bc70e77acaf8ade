"""Who is connected: connections that ask for nothing make room, and those that take too long have to go."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from inferline_stream.observability.connections import Connections


@given(st.lists(st.tuples(st.sampled_from(["open", "begin", "end", "tidy"]), st.integers(0, 9)), max_size=80))
def test_busy_connections_are_never_closed_to_make_room(steps):
    """Against plain lists: idle ones in order of since when, and a set of busy ones."""
    connections = Connections(most_busy=2, most=4, idle_s=10.0, request_s=30.0)
    idle: list[int] = []
    busy: set[int] = set()
    for now, (step, number) in enumerate(steps):
        if step == "open" and number not in idle and number not in busy:
            connections.opened(number, now)
            idle.append(number)
        elif step == "begin" and number in idle:
            idle.remove(number)
            busy.add(number)
            assert connections.began(number, now) is (len(busy) <= 2)
        elif step == "end" and number in busy:
            busy.remove(number)
            idle.append(number)
            connections.ended(number, now)
        elif step == "tidy":
            excess = max(0, len(idle) + len(busy) - 4)
            assert connections.in_excess() == idle[:excess]
            del idle[:excess]


def test_who_takes_too_long_has_to_go():
    connections = Connections(most_busy=9, most=9, idle_s=10.0, request_s=30.0)
    for name in "abc":
        connections.opened(name, 0.0)
    connections.began("b", 5.0)
    assert connections.overdue(10.0) == []
    connections.began("c", 9.0)
    connections.ended("c", 10.0)
    assert connections.overdue(11.0) == ["a"]
    connections.keep({"b"})
    assert connections.overdue(36.0) == ["b"]
    assert connections.overdue(99.0) == []
