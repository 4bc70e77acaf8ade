from collections import defaultdict

from hypothesis import given
from hypothesis import strategies as st

from inferline_stream.dataplane.batching import Backlog

Event = tuple[int, int]  # entry time, number


def backlog() -> Backlog[Event]:
    return Backlog(lambda event: event[0], lambda event: 1 + event[1] % 3)


actions = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(0, 4), st.integers(0, 50)),
        st.tuples(st.just("take"), st.integers(1, 8), st.just(0)),
        st.tuples(st.just("drop"), st.integers(0, 4), st.just(0)),
    ),
    max_size=80,
)


@given(actions)
def test_batches_take_the_head_that_entered_first_and_keep_each_partitions_order(steps):
    queue = backlog()
    model: dict[int, list[Event]] = defaultdict(list)
    for number, (what, one, two) in enumerate(steps):
        if what == "add":
            event = (two, number)
            queue.add(one, event)
            model[one].append(event)
        elif what == "drop":
            assert queue.drop(one) == model.pop(one, [])
        else:
            taken = queue.take(one)
            assert len(taken) == min(one, sum(map(len, model.values())))
            for event in taken:
                heads = {partition: events[0] for partition, events in model.items() if events}
                holder = next(partition for partition, head in heads.items() if head == event)
                assert event[0] == min(head[0] for head in heads.values())
                model[holder].pop(0)
        left = [event for events in model.values() for event in events]
        assert len(queue) == len(left)
        assert queue.size_bytes == sum(1 + event[1] % 3 for event in left)
        assert queue.bytes_of(0) == sum(1 + event[1] % 3 for event in model[0])
