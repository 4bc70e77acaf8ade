import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferline_stream.dataplane.dispatcher.join import Join
from inferline_stream.dataplane.routes import Send, follow
from inferline_stream.pipeline.shape import Arrow, Shape, visited


def shape(stages: str, *arrows: tuple[str, str]) -> Shape:
    names = tuple(stages.split())
    pairs = sorted(((names.index(child), names.index(parent)) for parent, child in arrows))
    return Shape(names, tuple(Arrow(parent, child, conditional=True) for child, parent in pairs))


DIAMOND = shape("a b c d", ("a", "b"), ("a", "c"), ("b", "d"), ("c", "d"))
MODERATION = shape("language toxicity duplicate verdict", ("language", "toxicity"), ("language", "duplicate"),
                   ("language", "verdict"), ("toxicity", "verdict"), ("duplicate", "verdict"))  # fmt: skip


def test_a_result_goes_along_the_arrows_taken_and_joins_hear_of_the_rest():
    followed = follow(MODERATION, "language", {"duplicate", "verdict"})
    assert followed.sends == (Send("duplicate", True), Send("verdict", True, ("toxicity",)))
    assert not followed.ended


def test_a_skipped_chain_is_passed_by_up_to_the_join():
    chain = shape("a b c d e", ("a", "b"), ("b", "c"), ("c", "e"), ("a", "d"), ("d", "e"))
    assert follow(chain, "a", {"d"}).sends == (Send("d", True), Send("e", False, ("c",)))


def test_an_event_whose_last_path_is_not_taken_is_completed():
    line = shape("a b c", ("a", "b"), ("b", "c"))
    assert follow(line, "a", set()).ended
    assert follow(line, "b", set()).ended
    assert follow(line, "c", {"ignored"}).to_sink
    assert follow(line, "c", None).ended


def test_a_join_all_of_whose_parents_are_skipped_hears_it_in_one_record():
    assert follow(DIAMOND, "a", set()).sends == (Send("d", False, ("b", "c")),)
    assert not follow(DIAMOND, "a", set()).ended


@st.composite
def dags(draw: st.DrawFn) -> Shape:
    """DAGs with one final stage: every stage but the last has an arrow onward."""
    count = draw(st.integers(2, 7))
    arrows = set()
    for stage in range(count - 1):
        children = draw(st.lists(st.integers(stage + 1, count - 1), min_size=1, max_size=3, unique=True))
        arrows |= {(child, stage) for child in children}
    return Shape(tuple(f"s{i}" for i in range(count)), tuple(Arrow(p, c, True) for c, p in sorted(arrows)))


@given(dags(), st.integers(0, 2**32), st.booleans())
def test_every_event_visits_exactly_the_stages_that_its_mask_says_and_ends_exactly_once(dag, seed, shuffled):
    """Run the routing rules on a whole DAG, records delivered in random order, against `pipeline.shape.visited`."""
    rng = random.Random(seed)
    mask = rng.getrandbits(len(dag.arrows))
    expected = visited(dag, _closed(dag, mask))
    joins = {dag.stages[s]: Join([dag.stages[dag.arrows[a].parent] for a in dag.parents(s)]) for s in dag.joins()}
    waiting = [(dag.stages[s], None, True, ()) for s in dag.entries()]
    runs: list[str] = []
    ends = offset = 0
    while waiting:
        stage, parent, result, skipped = waiting.pop(rng.randrange(len(waiting)) if shuffled else 0)
        ran = True
        if stage in joins:
            offset += 1
            joins[stage].add(b"e", record=offset, now_s=0.0, parent=parent if result else None, skipped=skipped)
            parts = joins[stage].take(0.0, lambda _: True)
            if parts is None:
                continue
            ran = any(parts.given)
        taken = None
        if ran:
            runs.append(stage)
            at = dag.stages.index(stage)
            taken = {dag.stages[dag.arrows[a].child] for a in dag.children(at) if mask >> a & 1}
        followed = follow(dag, stage, taken)
        ends += followed.to_sink + len(followed.ended)
        waiting += [(send.stage, stage, send.result, send.skipped) for send in followed.sends]
    assert sorted(runs) == sorted(name for name, seen in zip(dag.stages, expected, strict=True) if seen)
    assert ends == 1
    assert all(len(join) == 0 for join in joins.values())


def _closed(dag: Shape, mask: int) -> int:
    """Arrows out of stages that are not visited are not taken, whatever the mask says."""
    closed = mask
    for stage in range(len(dag.stages)):
        if not visited(dag, closed)[stage]:
            for arrow in dag.children(stage):
                closed &= ~(1 << arrow)
    return closed


@pytest.mark.parametrize("taken", [{"b", "c"}, {"b"}, {"c"}, set()])
def test_a_final_join_ends_an_event_once_whatever_was_taken(taken):
    join = Join(("b", "c"))
    ended = 0
    queue = list(follow(DIAMOND, "a", taken).sends)
    records = [("a", send) for send in queue]
    while records:
        source, send = records.pop(0)
        if send.stage == "d":
            join.add(b"e", record=1, now_s=0.0, parent=source if send.result else None, skipped=send.skipped)
            if (parts := join.take(0.0, lambda _: True)) is not None:
                followed = follow(DIAMOND, "d", {"-"} if any(parts.given) else None)
                ended += followed.to_sink + len(followed.ended)
        else:
            records += [(send.stage, s) for s in follow(DIAMOND, send.stage, {"d"}).sends]
    assert ended == 1
