"""What to profile and how thoroughly: stages and hardware kinds yet to be measured; and how far that has come."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from inferline_stream.errors import InvalidTopology
from inferline_stream.pipeline.hardware import Hardware, catalogue
from inferline_stream.pipeline.spot import is_spot
from inferline_stream.pipeline.topology import Pipeline, Stage
from inferline_stream.profiler.machine import Machine, why_not_here
from inferline_stream.profiler.profile_store import LOCAL, Known

EMBEDDED = "embedded"
"""What a broker is called that this process has started for itself."""

SAMPLE_S = 4.0
"""Time to spend on running the sample once."""

STAGE_S = 2.0
"""Time to spend on timing one stage on one kind."""


@dataclass(frozen=True, slots=True)
class Options:
    """What to profile, and how thoroughly.

    Args:
        again: also what is known already.
        stages: only these; all by default.
        sample_s: time for running the sample once.
        stage_s: time for one stage on one kind.
        broker: what the bootstrap servers are called in the store: times between stages differ by broker.
        oversubscribe: kinds below one core are measured also where nothing holds a replica to its share.
        elsewhere: replicas will run in a cluster, so that what was measured where something held it counts.
        platform: that they will run on. What was measured there counts before what was measured here, and what its
            network adds to a batch is part of the hop.
        products: by hardware kind, those that its devices there are of, as far as somebody may see them.
    """

    again: bool = False
    stages: frozenset[str] | None = None
    sample_s: float = SAMPLE_S
    stage_s: float = STAGE_S
    broker: str = EMBEDDED
    oversubscribe: bool = False
    elsewhere: bool = False
    platform: str = LOCAL
    products: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def pairs_to_profile(
    pipeline: Pipeline, known: Known, options: Options, machine: Machine, *, in_cluster: bool = False
) -> tuple[list[tuple[Stage, Hardware]], list[str]]:
    """Stage and hardware kinds to measure, and in words those that cannot be measured on this machine.

    Args:
        pipeline: the pipeline.
        known: what holds already.
        options: what to measure.
        machine: this machine.
        in_cluster: whether stages are measured on the platform, and here only what `is_measured_here` says.

    Raises:
        InvalidTopology: a stage would be left without any profile.
    """
    kinds = catalogue(pipeline.hardware)
    pairs, notes, problems = [], [], []
    absent: dict[str, dict[str, list[str]]] = {}
    for stage in pipeline.stages:
        reasons = []
        again = options.again and (options.stages is None or stage.name in options.stages)
        for kind in (kinds[name] for name in dict.fromkeys(stage.hardware) if not is_spot(name)):
            pair, what = (stage.name, kind.name), f"stage {stage.name!r} on {kind.name!r}"
            if in_cluster and not is_measured_here(kind):
                seen = set(options.products.get(kind.name, ()))
                if again or pair not in known.there or seen - set(known.profiles[pair].products):
                    pairs.append((stage, kind))
                continue
            why = why_not_here(kind, machine)
            if why is None and (again or pair not in known.profiles):
                pairs.append((stage, kind))
            if why is not None:
                if 0 < kind.cores < 1 and not machine.shares and not options.elsewhere:
                    known.profiles.pop(pair, None)  # where it was measured, something held the share
                if pair not in known.profiles:
                    reasons.append(why)
                    absent.setdefault(why, {}).setdefault(stage.name, []).append(kind.name)
                    continue
            if options.platform != LOCAL and not is_measured_here(kind) and pair not in known.there:
                notes.append(
                    f"{what}: its times are not of {options.platform}; "
                    f"`inferline-stream profile --on {options.platform}` measures them there"
                )
        if len(reasons) == len({name for name in stage.hardware if not is_spot(name)}):
            problems.append(
                f"{stage.declared}: stage {stage.name!r}: none of its hardware can be profiled here: "
                f"{'; '.join(dict.fromkeys(reasons))}. Add a kind that this machine has, or bring profiles from one "
                "that has it"
            )
    if problems:
        raise InvalidTopology(*problems)
    for why, by_stage in absent.items():
        what = "; ".join(f"stage {stage!r} on {', '.join(map(repr, each))}" for stage, each in by_stage.items())
        them = "it" if sum(map(len, by_stage.values())) == 1 else "them"
        notes.append(f"{what}: not profiled, {why}; plans leave {them} out")
    return pairs, notes


def apart(kind: Hardware, products: Sequence[str]) -> tuple[Hardware, ...]:
    """Return a kind as it is measured: each product that its devices are of by itself, where they are of several."""
    return tuple(replace(kind, gpu_model=product) for product in products) if len(products) > 1 else (kind,)


def is_measured_here(kind: Hardware) -> bool:
    """Whether a kind is measured on this machine whatever the platform.

    Emulated times are alike everywhere. Of a share of a GPU, only its own machine says how much memory a replica takes.
    """
    return kind.emulated or kind.shares_gpu


@dataclass(frozen=True, slots=True)
class Progress:
    """How far profiling has come.

    Args:
        done: steps finished; fractions for one under way.
        total: steps in all.
        doing: the step under way, in words.
        note: something worth keeping on the screen: what was skipped, or ended early.
    """

    done: float
    total: int
    doing: str
    note: str = ""


class Steps:
    """Counts steps and reports them."""

    def __init__(self, tell: Callable[[Progress], None], total: int) -> None:
        self._tell = tell
        self._total = total
        self._begun = 0
        self._done = 0.0
        self._doing = ""

    def begin(self, doing: str) -> None:
        """The next step begins; the one before is done."""
        self._begun += 1
        self._doing = doing
        self.within(0.0)

    def within(self, share: float, detail: str = "") -> None:
        """The step under way has come so far."""
        self._done = self._begun - 1 + share
        self._tell(Progress(self._done, self._total, f"{self._doing}{detail}"))

    def note(self, note: str) -> None:
        """Something to keep on the screen."""
        self._tell(Progress(self._done, self._total, self._doing, note))

    def end(self) -> None:
        """Every step is done."""
        self._tell(Progress(self._total, self._total, "done"))
