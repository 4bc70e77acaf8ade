"""What the policy decides, and why: values that go out to actuator, logs, metrics and `explain`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class Action(StrEnum):
    """What a decision does to the replicas."""

    SCALE_UP = "scale_up"
    SCALE_DOWN = "scale_down"
    REPLAN = "replan"
    """Another plan comes into force: batch limits change at once, replicas one after another."""
    REPLACE = "replace"
    """The same replicas, one after another, with newer code."""
    HOLD = "hold"
    """Nothing changes; reported once when it begins, since someone should know why."""


class Reason(StrEnum):
    """Why; closed, so that alerts and dashboards can count by it."""

    ENVELOPE_EXCEEDED = "envelope_exceeded"
    """Some window holds more arrivals than the plan was made for."""
    RATE_RISING = "rate_rising"
    """By the time a new replica is ready, traffic will have outgrown the present ones."""
    BACKLOG = "backlog"
    """Queued records would miss the SLO at the present throughput."""
    DEGRADED = "degraded"
    """A stage's fallback makes more of the events than it is there for."""
    VISIT_RATIO_SHIFTED = "visit_ratio_shifted"
    """More events take the branch to a stage than planned."""
    THROUGHPUT_FELL = "throughput_fell"
    """Replicas of a stage are slower than profiled."""
    INSURANCE = "insurance"
    """A reserve is held: what the odds of a rise are worth, what a beginning asks for, or what people say."""
    BACKGROUND = "background"
    """Background events have a rate, or a time to be done by, for which what live ones leave idle is not enough."""
    LOAD_FELL = "load_fell"
    """The load fits fewer replicas."""
    IDLE = "idle"
    """Nothing has come for as long as it takes to have no replica left."""
    WOKEN = "woken"
    """An event has come to stages without replicas."""
    SPOT_LOST = "spot_lost"
    """Spot capacity is taken away: its replicas have got a notice."""
    SPOT_BACK = "spot_back"
    """Spot capacity has been away for a while, and is asked for again."""
    LIMIT_CHANGED = "limit_changed"
    """People or the cluster set other limits."""
    DISPATCHERS_NEED_REPLICAS = "dispatchers_need_replicas"
    """A stage has more dispatchers than replicas, and one without a replica serves nothing."""
    STOCK_EXHAUSTED = "stock_exhausted"
    """More replicas are needed than the hardware in stock can give."""
    SERVER_LIMIT = "server_limit"
    """The model server that a stage asks gives no more: more replicas would only ask the same one."""
    OVERSUBSCRIBED = "oversubscribed"
    """Others take the cores that replicas were planned with: more replicas would only share what is left."""
    PARTITION_STUCK = "partition_stuck"
    """A partition's offset stands still while its stage has capacity: replicas would not help."""
    INPUT_STALE = "input_stale"
    """Arrivals or reports are missing or too old to decide on."""
    CLOCK_JUMPED = "clock_jumped"
    """Time went backwards or leapt forwards."""
    INPUT_RESTORED = "input_restored"
    """Arrivals and reports are fresh again."""
    PLAN_SAVES = "plan_saves"
    """A new plan costs less by more than a change is worth."""
    PLAN_MISSES_SLO = "plan_misses_slo"
    """The plan in force would miss the SLO on the traffic recorded recently, with what replicas measure."""
    PLAN_INFEASIBLE = "plan_infeasible"
    """No plan meets the SLO on the traffic recorded recently."""
    NEW_CODE = "new_code"
    """People gave newer code of the stages."""


@dataclass(frozen=True, slots=True)
class Decision:
    """Replicas wanted from now on, for every stage.

    Args:
        replicas: stage → hardware kind → replicas.
        action: what changes.
        reason: the main reason.
        detail: in words, with the numbers it was made on.
    """

    replicas: Mapping[str, Mapping[str, int]]
    action: Action
    reason: Reason
    detail: str
