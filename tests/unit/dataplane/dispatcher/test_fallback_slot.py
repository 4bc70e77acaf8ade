"""What a slot does with a stage's fallback: which batches it gets, what is said of its results, and its share."""

import pytest

from inferline_stream.dataplane.frames import Call, Done, Failed, Many, Results
from inferline_stream.dataplane.headers import FALLBACK, REASON, read_headers, with_fallback
from inferline_stream.dataplane.routes import routes_of
from inferline_stream.dataplane.slot_grants import LeaderHeartbeat
from inferline_stream.kafka.records import Record
from inferline_stream.pipeline.fallback import FALLBACK as FAST
from inferline_stream.pipeline.fallback import MAIN
from inferline_stream.pipeline.names import OF
from inferline_stream.pipeline.topology import Pipeline, Stage, Topic
from tests.unit.dataplane.dispatcher.doubles import WALL_S
from tests.unit.dataplane.dispatcher.test_deadline_slot import Stage as DeadlineSlot


class Degradable(DeadlineSlot):
    """A stage whose fallback takes 20 ms for an event in place of 100."""

    def __init__(self, *, share=1.0, served=((100, 0),), **how):
        super().__init__(**how)
        self.planned |= {"fallback_s": {1: 0.02}, "fallback_share": share}
        self.plan(**self.planned)
        if served is not None:
            self.feed(LeaderHeartbeat(1, "c", served={"work": [list(served)]}))

    def version(self, age_s):
        """The version of the batch of an event that came so old, which the replica then answers."""
        self.come(age_s)
        batch = self.replica.batch()
        self.replica.answer(batch)
        return batch.version

    def results(self, *topics):
        """The records that were sent, or those to some topics alone."""
        return [
            record
            for outgoing in self.outgoing
            for (topic, _), records in outgoing.items()
            for record in records
            if not topics or topic in topics
        ]


@pytest.mark.parametrize(("age_s", "version"), [(0.0, MAIN), (0.89, MAIN), (0.91, FAST), (0.97, FAST), (0.99, MAIN)])
def test_a_batch_goes_to_the_fallback_exactly_where_it_is_late_otherwise_and_on_time_by_it(age_s, version):
    assert Degradable().version(age_s) == version


@pytest.mark.parametrize(
    ("age_s", "served", "version"),
    [(0.59, 100, MAIN), (0.61, 100, FAST), (0.97, 100, FAST), (0.99, 100, MAIN), (0.89, 0, MAIN), (0.91, 0, MAIN)],
)
def test_it_leaves_later_stages_the_time_that_they_usually_take(age_s, served, version):
    """They hurry, so that R is 0.3 s below what it usually is; beyond the share the stage does what it can by itself.

    The last age with nothing left of the share is hopeless, and runs on the stage as well.
    """
    stage = Degradable(share=0.5, served=None)
    stage.feed(LeaderHeartbeat(1, "c", longer_s={"work": 0.3}, served={"work": [[(100, 0 if served else 100)]]}))
    assert stage.version(age_s) == version


def test_a_replica_of_a_version_without_a_fallback_gets_no_batch_of_it_whatever_the_profile_says():
    stage = Degradable()
    stage.replica.die()
    stage.replica = stage.attached(ready=False)
    stage.replica.ready(fallback=False)
    assert stage.version(0.95) == MAIN
    assert stage.report.counts.degraded == 0


def test_its_results_carry_that_it_made_them_and_are_counted():
    stage = Degradable()
    assert (stage.version(0.0), stage.version(0.95)) == (MAIN, FAST)
    made = [dict(record.headers).get(FALLBACK) for record in stage.results()]
    assert made == [None, b"work"]
    assert stage.report.counts.degraded == 1
    assert [size.batches for sizes in stage.report.counts.batch_stats.values() for size in sizes.values()] == [1]
    assert stage.report.counts.served == 2


def test_an_event_that_it_fails_on_runs_on_the_stage_itself_before_anything_is_said_of_it():
    stage = Degradable()
    stage.come(0.95)
    batch = stage.replica.batch()
    assert batch.version == FAST
    stage.replica.say(Results(batch.epoch, batch.batch, [Failed("E", "no", "")], [Call(1, 0.01)], 0.01))
    again = stage.replica.batch()
    assert (again.inputs, again.version) == (batch.inputs, MAIN)
    stage.replica.answer(again)
    (record,) = stage.results()
    assert FALLBACK not in dict(record.headers)
    assert (stage.report.counts.dead_lettered, stage.report.counts.degraded) == (0, 0)


def degraded_together(stage, *keys):
    """The batch of the fallback that events with these keys are in, their places as values."""
    stage.plan(**stage.planned | {"limit": 4, "service_s": {1: 0.1, 4: 0.1}, "fallback_s": {1: 0.02, 4: 0.02}})
    stamp_ms = round((stage.now_s + WALL_S - 0.95) * 1000)
    records = [Record(key, b"%d" % at, (), stamp_ms, "in", 0, at) for at, key in enumerate(keys)]
    stage.read({0: records}, {0: len(keys)})
    batch = stage.replica.batch()
    assert (batch.version, batch.inputs) == (FAST, [record.value for record in records])
    return batch


@pytest.mark.parametrize("outcome", [Failed("E", "no", ""), Done(b"x" * 10**7, 0)])
def test_what_follows_in_its_key_an_event_that_it_fails_on_runs_after_that_on_the_stage_itself(outcome):
    stage = Degradable()
    batch = degraded_together(stage, b"k", b"k", b"another")
    outcomes = [outcome, Done(b"1", 0), Done(b"2", 0)]
    stage.replica.say(Results(batch.epoch, batch.batch, outcomes, [Call(3, 0.01)], 0.01))
    again = stage.replica.batch()
    assert (again.inputs, again.version) == ([b"0", b"1"], MAIN)
    stage.replica.answer(again)
    stage.until(lambda: stage.offset() == 3, "all are committed")
    assert stage.sent == [b"2", b"0", b"1"]
    assert (stage.report.counts.dead_lettered, stage.report.counts.degraded) == (0, 1)


def test_events_that_it_fails_on_together_run_together_on_the_stage_itself():
    stage = Degradable()
    batch = degraded_together(stage, None, None, None)
    stage.replica.say(Results(batch.epoch, batch.batch, [Failed("E", "no", "")] * 3, [], 0.01))
    again = stage.replica.batch()
    assert (again.inputs, again.version) == (batch.inputs, MAIN)


def pieces(values: list[bytes]) -> list[list[bytes]]:
    return [[value] for value in values]


def test_each_of_many_results_of_it_says_so_and_an_event_to_which_it_gives_none_ends_so():
    work = Stage("work", pieces, hardware="cpu-1", many=True, most=3)
    ends = {"source": Topic("in", codec="raw"), "sink": Topic("out", codec="raw")}
    stage = Degradable(stage=routes_of(Pipeline("p", slo="1s", stages=[work], **ends), "work"))
    batch = degraded_together(stage, b"k", None, None)
    outcomes = [Many((Done(b"a", 0), Done(b"b", 0, b"own"))), Many(), Many((Done(b"more than 3", 0),) * 4)]
    stage.replica.say(Results(batch.epoch, batch.batch, outcomes, [Call(3, 0.01)], 0.01))
    again = stage.replica.batch()
    assert (again.inputs, again.version) == ([b"2"], MAIN)
    stage.replica.say(Results(again.epoch, again.batch, [Many((Done(b"c", 0),))], [Call(1, 0.1)], 0.1))
    stage.until(lambda: stage.offset() == 3, "all are committed")
    sunk = stage.results("out")
    headers = [dict(record.headers) for record in sunk]
    assert [(record.key, record.value) for record in sunk] == [
        (b"k", b"a"),
        (b"own", b"b"),
        (None, b"c"),
    ]
    assert [(own[OF], own.get(FALLBACK)) for own in headers] == [(b"2", b"work"), (b"2", b"work"), (b"1", None)]
    (filtered,) = (dict(record.headers) for record in stage.results(stage.routes.names.completed))
    assert (filtered[REASON], filtered[FALLBACK]) == (b"filtered", b"work")
    counts = stage.report.counts
    assert (counts.degraded, counts.results, counts.filtered, counts.dead_lettered) == (2, 3, 1, 0)


def test_beyond_its_share_events_are_late_rather_than_degraded():
    stage = Degradable(share=0.05, served=((99, 0),))
    assert [stage.version(0.95) for _ in range(6)] == [FAST] * 5 + [MAIN]


def test_what_was_served_in_the_last_hour_outlives_the_process_and_counts_once():
    stage = Degradable(share=0.05, served=((60, 0), (39, 4)))
    assert [stage.version(0.95) for _ in range(2)] == [FAST, MAIN]
    served = stage.reported().served
    assert sum(events for events, _ in served) == 101
    assert sum(degraded for _, degraded in served) == 5
    stage.feed(LeaderHeartbeat(1, "c", served={"work": [[(10_000, 0)]]}))
    assert stage.version(0.95) == MAIN
    assert sum(events for events, _ in stage.reported().served) == 102
    heir = Degradable(share=0.05, served=served)
    assert heir.version(0.95) == MAIN


def test_a_process_that_does_not_know_what_was_served_degrades_nothing_and_says_so():
    stage = Degradable(share=0.5, served=None)
    assert stage.version(0.95) == MAIN
    assert stage.reported().served == []


def test_stages_are_named_once_and_in_their_order():
    headers = with_fallback(with_fallback([("own", b"1")], b"a"), b"b", b"a")
    assert headers == [("own", b"1"), (FALLBACK, b"a,b")]
    assert read_headers(headers).fallback == b"a,b"
    assert read_headers(headers, entry=True).fallback == b""
    assert with_fallback([(FALLBACK, b"\xff")], b"a") == [(FALLBACK, b"\xff,a")]  # somebody else's
