"""What a topology says of consumer groups that run already, and what is wrong with it."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from inferline_stream.pipeline.consumer_group import Command, ConsumerGroup, Deployment, FaustApp, KedaScaler, PromQL
from inferline_stream.pipeline.hardware import Catalogue, Hardware, catalogue
from inferline_stream.pipeline.names import nearest, problems_of_name
from inferline_stream.pipeline.shape import find_cycle
from inferline_stream.pipeline.topology import Pipeline

REPLICAS = "{replicas}"
"""Stands for the number wanted in a `Command`."""

_OBJECT = r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?"
_DEPLOYMENT = re.compile(rf"([a-z0-9]([-a-z0-9]{{0,61}}[a-z0-9])?/)?{_OBJECT}")
_FAUST_APP = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


def problems_of_groups(pipeline: Pipeline) -> Iterator[str]:
    """Yield what is wrong with a declared pipeline's consumer groups, each with its place and the remedy."""
    groups = list({id(group): group for group in pipeline.groups}.values())
    if not groups:
        return
    for problem in (*_of_pipeline(pipeline), *_of_list(pipeline.groups, groups)):
        yield f"{pipeline.declared}: {problem}"
    kinds = catalogue(kind for kind in pipeline.hardware if isinstance(kind, Hardware))
    for group in groups:
        for problem in (*_of_group(group, kinds), *_of_parent(group, groups)):
            yield f"{group.declared}: group {group.name!r}: {problem}"


def _of_pipeline(pipeline: Pipeline) -> Iterator[str]:
    if pipeline.stages:
        yield (
            f"stages holds {_listed(pipeline.stages)} beside consumer groups ({_listed(pipeline.groups)}); declare a "
            "pipeline for each, of stages that run here and of groups that run already"
        )
    if pipeline.sink is not None:
        yield "sink is of stages, and what a group writes is its own; leave sink out"
    if [topic.name for topic in pipeline.sources] != _topics(pipeline.groups):
        yield "source is of stages, and a group reads its own topic; leave source out"
    if pipeline.sample is not None:
        yield "sample is of stages: what groups get is read from Kafka; leave sample out"
    if pipeline.on_expired != "process":
        yield f"on_expired {pipeline.on_expired!r} is of stages: a group's workers decide that; leave it out"


def _of_list(listed: Sequence[ConsumerGroup], groups: Sequence[ConsumerGroup]) -> Iterator[str]:
    for ident, times in Counter(map(id, listed)).items():
        if times > 1:
            yield f"group {next(g.name for g in groups if id(g) == ident)!r} is listed {times} times; list it once"
    for name, times in Counter(group.name for group in groups).items():
        if times > 1:
            yield f"{times} groups are called {name!r}; give each a name of its own"
    for ident_, times in Counter(group.group for group in groups).items():
        if times > 1:
            yield (
                f"{times} groups have the id {ident_!r}, and the members of one are shared by all that it reads: "
                "declare one topic of it, the one with the most records"
            )
    for deployment, times in Counter(filter(None, map(_deployment, groups))).items():
        if times > 1:
            yield (
                f"{times} groups have workers in the Deployment {deployment!r}, and each would set its replicas; have "
                "one group's workers in it"
            )
    topics = _topics(groups)
    if len(topics) > 1:
        yield (
            f"its first groups read {len(topics)} topics ({', '.join(map(repr, topics))}); declare a pipeline for "
            "each, or say with after=[...] which group writes the others"
        )
    if cycle := find_cycle(groups, lambda group: [p for p in group.after if isinstance(p, ConsumerGroup)]):
        yield f"groups form a cycle: {' → '.join(group.name for group in cycle)}; remove one of these edges"


def _of_group(group: ConsumerGroup, kinds: Catalogue) -> Iterator[str]:
    yield from problems_of_name(group.name, "group")
    for what, given in (("group", group.group), ("topic", group.topic)):
        text: Any = given
        if not isinstance(text, str) or not text.strip():
            yield f"{what} {text!r} is no name; give the one that Kafka knows"
    if group.hardware not in kinds:
        yield f"unknown hardware {group.hardware!r}{nearest(group.hardware, kinds)}"
    yield from _of_workers(group.workers)
    yield from _of_service_time(group)


def _of_service_time(group: ConsumerGroup) -> Iterator[str]:
    asked: Any = group.service_time
    if asked is None:
        return
    if not isinstance(asked, PromQL):
        yield f'service_time {asked!r} is no query; write PromQL("http://prometheus:9090", "...")'
    elif not (isinstance(asked.url, str) and re.fullmatch(r"https?://[^/\s]+(/\S*)?", asked.url)):
        yield f'service_time asks {asked.url!r}, which is no address; write "http://host:9090"'
    elif not isinstance(asked.query, str) or not asked.query.strip():
        yield "service_time asks nothing; write a query that gives the seconds that an event takes a worker"
    elif isinstance(group.workers, FaustApp):
        yield "service_time: the workers of a FaustApp report it themselves; leave it out"


def _of_workers(workers: Any) -> Iterator[str]:
    if isinstance(workers, Deployment):
        if not isinstance(workers.name, str) or not _DEPLOYMENT.fullmatch(workers.name):
            yield f'Deployment {workers.name!r} has no such name; write "name" or "namespace/name", as Kubernetes does'
    elif isinstance(workers, Command):
        try:
            words = shlex.split(workers.run)
        except (ValueError, AttributeError) as error:
            yield f"Command {workers.run!r} is no command ({error})"
            return
        if not any(REPLICAS in word for word in words):
            yield (
                f"Command {workers.run!r} does not say how many; write {REPLICAS} where the number of workers belongs"
            )
    elif isinstance(workers, FaustApp):
        if not isinstance(workers.app, str) or not _FAUST_APP.fullmatch(workers.app):
            yield f'FaustApp {workers.app!r} names no app; write "module:attribute", as `faust -A` takes it'
    elif isinstance(workers, KedaScaler):
        name, tolerance = workers.deployment, workers.tolerance
        if name != "" and not (isinstance(name, str) and _DEPLOYMENT.fullmatch(name)):
            yield f'KedaScaler {name!r} names no Deployment; write "name" or "namespace/name", as Kubernetes does'
        if not isinstance(tolerance, int | float) or isinstance(tolerance, bool) or not 0 <= tolerance < 1:
            yield f"KedaScaler tolerance {tolerance!r} is no share; write 0.1 for 10%, or 0 where there is none"
    elif workers is not None:
        yield (
            f"workers {workers!r} is none of Deployment(...), KedaScaler(), Command(...) and FaustApp(...); leave it "
            "out where the group is only advised"
        )


def _of_parent(group: ConsumerGroup, groups: Sequence[ConsumerGroup]) -> Iterator[str]:
    for parent in group.after:
        stray: Any = parent
        if not isinstance(stray, ConsumerGroup):
            yield f"after holds {stray!r}, which is no ConsumerGroup"
        elif not any(parent is other for other in groups):
            yield f"comes after {parent.name!r}, which is not in stages=[...]; list it there"
        elif parent.topic == group.topic:
            yield (
                f"comes after {parent.name!r} and reads the same topic {group.topic!r}; leave after out, or give the "
                "topic that that group writes"
            )
    if len(group.after) > 1:
        yield (
            f"comes after {len(group.after)} groups: how long a join waits is not seen in Kafka; declare one parent, "
            "the one that finishes last"
        )


def _deployment(group: ConsumerGroup) -> str:
    """Return the Deployment whose replicas a group sets; empty for none."""
    match group.workers:
        case KedaScaler(""):
            return group.name
        case Deployment(str(name)) | KedaScaler(str(name)):
            return name
    return ""


def _topics(groups: Sequence[ConsumerGroup]) -> list[str]:
    """What enters: the topics of groups without a parent."""
    return list(dict.fromkeys(group.topic for group in groups if not group.after))


def _listed(declared: Sequence[Any]) -> str:
    return ", ".join(repr(getattr(each, "name", each)) for each in declared)
