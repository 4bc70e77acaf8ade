"""What a topology says of a stage's fallback, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Iterator

from inferline_stream.pipeline.annotations import (
    StageTypes,
    accepts,
    check_code_name,
    describe,
    served_types,
    stage_types,
)
from inferline_stream.pipeline.annotations import types_of as types_of_stage
from inferline_stream.pipeline.emulation import Emulated, fallback_s
from inferline_stream.pipeline.hardware import EMULATED_PREFIX
from inferline_stream.pipeline.model_server import ModelServer
from inferline_stream.pipeline.topology import Pipeline, Stage, is_asynchronous


def problems_of_fallbacks(pipeline: Pipeline) -> Iterator[str]:
    """Yield what is wrong with the fallbacks of a declared pipeline's stages, each with its place and the remedy."""
    for stage in pipeline.stages:
        if not isinstance(stage, Stage):
            continue
        for problem in _of_stage(stage, pipeline.order):
            yield f"{stage.declared}: stage {stage.name!r}: {problem}"


def _of_stage(stage: Stage, order: str) -> Iterator[str]:
    if stage.fallback is None:
        if stage.fallback_share is not None:
            yield "fallback_share without a fallback; give the faster version, or leave the share out"
        if isinstance(stage.emulated, Emulated) and stage.emulated.fallback:
            yield "emulated times of a fallback, and it has none; give fallback=, or leave them out"
        return
    if order == "entry":
        yield "a fallback needs order='deadline': in order of entry nothing is late until it is too late; leave one out"
    try:
        part = stage.degraded_share
        if not 0 < part <= 1:
            yield f"fallback_share {stage.fallback_share!r} must be above 0 % and at most 100 %, e.g. '5%'"
    except ValueError as error:
        yield f"fallback_share {error}"
    yield from _of_code(stage)
    for kind in (kind for kind in stage.hardware if isinstance(kind, str) and kind.startswith(EMULATED_PREFIX)):
        try:
            fallback_s(stage.emulated, kind)
        except ValueError as error:
            yield f"fallback: {error}"
            break


def _of_code(stage: Stage) -> Iterator[str]:
    """Whether the fallback is called as the stage is, takes its events and returns its results."""
    fallback = stage.fallback
    if (stage.server is not None) != isinstance(fallback, ModelServer):
        what = (
            "a server, and its fallback is code" if stage.server is not None else "code, and its fallback is a server"
        )
        yield f"is {what}; both must be of one kind, such as two models of a server: OpenInference(..., model='small')"
        return
    if isinstance(fallback, ModelServer):
        for problem in fallback.problems():
            yield f"fallback: {problem}"
        server = stage.server
        assert server is not None
        if fallback.batches != server.batches:
            yield "its fallback takes another number of events per request; ask it by the same protocol"
        if fallback.command or (server.command and fallback.url != server.url):
            yield (
                "a fallback asks the server that runs already: give it the stage's url, and no command; a server may "
                "serve several models"
            )
    elif not isinstance(fallback, str) and not isinstance(stage.run, str):
        asynchronous = is_asynchronous(stage.run)
        if is_asynchronous(fallback) != asynchronous:
            yield f"its fallback must be declared with `{'async def' if asynchronous else 'def'}`, as the stage is"
    try:
        own = types_of_stage(stage)
    except TypeError:
        return  # reported of the stage
    try:
        other = _types(stage)
    except TypeError as error:
        yield f"fallback: {error}"
        return
    if not accepts(other.takes, own.takes):
        yield (
            f"its fallback takes list[{describe(other.takes)}], and the stage list[{describe(own.takes)}]; annotate "
            "both with the same type"
        )
    if not accepts(own.returns, other.returns):
        yield (
            f"its fallback returns list[{describe(other.returns)}], and the stage list[{describe(own.returns)}]; "
            "annotate both with the same type"
        )


def _types(stage: Stage) -> StageTypes:
    """Return the types of a fallback's events and results, as `types_of` does those of a stage.

    Raises:
        TypeError: likewise.
    """
    fallback = stage.fallback
    if isinstance(fallback, ModelServer):
        return served_types(fallback)
    if isinstance(fallback, str):
        check_code_name(fallback)
        return types_of_stage(stage)
    if not callable(fallback):
        raise TypeError(f"{fallback!r} is no code; give a function, a class, or its name, 'module:name'")
    return stage_types(fallback)
