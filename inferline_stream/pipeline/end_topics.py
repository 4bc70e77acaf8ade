"""Sources and sinks of stages' own: what is wrong with them as declared."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from inferline_stream.pipeline.topology import Pipeline, Sample, Stage, Topic


def problems_of_sinks(pipeline: Pipeline, stages: Sequence[Stage]) -> Iterator[str]:
    """Yield what is wrong with the sinks of a declared pipeline's stages, each with the remedy.

    Args:
        pipeline: as declared.
        stages: its stages, each once.
    """
    parents = {id(getattr(edge, "parent", edge)) for stage in stages for edge in stage.after}
    own = [stage.name for stage in stages if id(stage) not in parents and stage.sink is None]
    if len(own) > 1:
        yield (
            f"{len(own)} stages have no child and no sink of their own ({', '.join(map(repr, own))}); one final stage "
            'feeds the pipeline\'s sink: give the others sink=Topic("..."), or join them in one more stage'
        )
    elif own and pipeline.sink is None:
        yield f'final stage {own[0]!r} has no sink; give it or the pipeline sink=Topic("...")'
    elif stages and not own and pipeline.sink is not None and len(parents) < len(stages):
        yield "each final stage has a sink of its own, so that none feeds the pipeline's sink; leave that out"
    topics = [topic for topic in (pipeline.sink, *(stage.sink for stage in stages)) if isinstance(topic, Topic)]
    for name, times in Counter(topic.name for topic in topics).items():
        if times > 1:
            yield f"{times} sinks are topic {name!r}; give each a topic of its own"
    for topic in topics:
        if topic.background or topic.slo is not None:
            what = "background" if topic.background else "slo"
            yield f"sink topic {topic.name!r}: {what} is of a source; a sink gets results of all classes"


def problems_of_sources(pipeline: Pipeline, stages: Sequence[Stage]) -> Iterator[str]:
    """Yield what is wrong with the sources of a declared pipeline's stages, each with the remedy.

    Args:
        pipeline: as declared.
        stages: its stages, each once.
    """
    own = {name: topic for name, topic in pipeline.own_sources.items() if isinstance(topic, Topic)}
    without = [stage.name for stage in stages if not stage.after and stage.source is None]
    for stage in stages:
        if stage.source is not None and stage.after:
            yield f"stage {stage.name!r} has parents and a source; a source is of a first stage: leave one of them out"
    if own and pipeline.listed and not without:
        yield "each first stage has a source of its own, so that none reads the pipeline's; leave source out there"
    if not pipeline.listed and without and own:
        yield f'first stage {without[0]!r} has no source; give it or the pipeline source=Topic("...")'
    for name, topic in own.items():
        plain = Topic(topic.name, background=False)
        for what in ("background", "weight", "rate", "finish_by", "slo", "share"):
            if getattr(topic, what) != getattr(plain, what):
                yield f"source topic {topic.name!r} of stage {name!r}: {what} is of a pipeline's source; leave it out"
    for topic in pipeline.listed if own else ():
        if isinstance(topic, Topic) and topic.slo is not None:
            yield (
                f"source topic {topic.name!r} has a slo, and stage {next(iter(own))!r} a source of its own; sources of "
                "stages have one SLO: leave slo out, or declare a pipeline for it"
            )
    for topic in (*pipeline.listed, *own.values()):
        given = getattr(topic, "sample", None)
        if given is not None and topic in pipeline.listed:
            yield f"source topic {topic.name!r}: its sample is the pipeline's; write Pipeline(sample=...)"
        elif given is not None and not isinstance(given, Sample):
            yield f"source topic {topic.name!r}: sample {given!r} is no Sample"
    samples = pipeline.samples if own else {}
    lacking = [name for name, sample in samples.items() if sample is None]
    if 0 < len(lacking) < len(samples):
        yield f"source topic {lacking[0]!r} has no sample, and others have; give it one, or none any"
