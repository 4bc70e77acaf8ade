"""What a controller says of a join's parts, against a pipeline of which everything is known."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from inferline_stream.controlplane.observe.settled_parts import SettledParts

CHILDREN = {"fork": ("left", "right"), "left": ("join",), "right": ("join",)}


class Flow:
    """Events on their way from a fork over two branches into a join; offsets are read of it while it changes."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.topics: dict[str, list[int]] = {stage: [] for stage in (*CHILDREN, "join")}
        self.sent, self.done = dict.fromkeys(CHILDREN, 0), dict.fromkeys(CHILDREN, 0)
        self.asked: list[tuple[float, dict[str, tuple[int, ...]]]] = []
        self.settling = SettledParts("join", tuple(CHILDREN))

    def step(self, what: str, stage: str) -> None:
        self.now_s += 1.0
        if what == "arrive":
            self.topics["fork"].append(len(self.topics["fork"]))
        elif what == "send" and self.sent[stage] < len(self.topics[stage]):
            for child in CHILDREN[stage]:
                self.topics[child].append(self.topics[stage][self.sent[stage]])
            self.sent[stage] += 1
        elif what == "commit":
            self.done[stage] = self.sent[stage]
        elif what == "ask":
            self.asked.append((self.now_s, {stage: (len(events),) for stage, events in self.topics.items()}))
        elif what == "answer" and self.asked:
            asked_s, ends = self.asked.pop(0)
            self.settling.ends(asked_s, self.now_s, ends)
        elif what == "look":
            self.settling.committed(self.now_s, stage, (self.done[stage] or -1,))


def check(flow: Flow) -> None:
    first, read = flow.settling.settled.get(0, (0, 0))
    join = flow.topics["join"]
    assert first <= read <= len(join)
    assert all(join[:read].count(event) == 2 for event in join[:first])


whats = st.sampled_from(["arrive", "send", "send", "commit", "ask", "answer", "look", "look"])


@given(st.lists(st.tuples(whats, st.sampled_from(list(CHILDREN))), max_size=150))
def test_what_is_settled_has_every_part_that_it_will_ever_have(steps):
    flow = Flow()
    for what, stage in steps:
        flow.step(what, stage)
        check(flow)


def rounds(flow: Flow, count: int, *, without: str = "") -> None:
    for _ in range(count):
        for stage in CHILDREN:
            if stage != without:
                while flow.sent[stage] < len(flow.topics[stage]):
                    flow.step("send", stage)
                flow.step("commit", stage)
            flow.step("ask", stage)
            flow.step("answer", stage)
            flow.step("look", stage)


def test_nothing_is_settled_while_a_branch_stands_still_and_all_is_once_it_has_caught_up():
    flow = Flow()
    for _ in range(5):
        flow.step("arrive", "fork")
    rounds(flow, 9, without="right")
    assert flow.topics["join"] == [*range(5)]
    assert flow.settling.settled.get(0, (0, 0))[0] == 0
    rounds(flow, 9)
    assert flow.settling.settled == {0: (10, 10)}


def test_offsets_that_were_asked_for_before_a_round_began_settle_nothing():
    settling = SettledParts("join", tuple(CHILDREN))
    now = {"fork": (1,), "left": (1,), "right": (1,), "join": (1,)}
    before = {stage: (0,) for stage in now}
    settling.ends(5.0, 6.0, now)
    for _ in range(9):
        settling.ends(4.0, 7.0, before)
        for stage, done in (("fork", 1), ("left", 1), ("right", 0)):
            settling.committed(7.0, stage, (done,))
    assert settling.settled == {}


def test_nothing_is_settled_while_parts_wait_in_a_join_before_wherever_that_has_moved_them():
    settling = SettledParts("join", ("fork", "join before"))
    ends = {"fork": (1,), "join before": (9,), "join": (1,)}

    def rounds(now_s: float, *, waits: bool) -> None:
        for _ in range(9):
            settling.ends(now_s, now_s, ends)
            settling.committed(now_s, "fork", (1,))
            settling.committed(now_s, "join before", (9,), waits=waits)

    rounds(1.0, waits=True)
    assert settling.settled == {}
    rounds(2.0, waits=False)
    assert settling.settled == {0: (1, 1)}
