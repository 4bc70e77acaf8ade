"""The code of one stage: decode an event, call the stage, judge conditions, encode the result."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, get_args

import msgspec

from inferline_stream.dataplane.codecs import codec
from inferline_stream.dataplane.frames import Answer, Call, Done, Failed, Many, StageInput
from inferline_stream.dataplane.replica.stage_call import Settled, attempt, finished, run_batch_awaited
from inferline_stream.dataplane.routes import routes_of
from inferline_stream.dataplane.topology_loader import last_line, load_code
from inferline_stream.errors import InvalidTopology, StageFailed
from inferline_stream.pipeline.annotations import condition_type, join_fields, stage_types, types_of, without_none
from inferline_stream.pipeline.emulation import Emulated
from inferline_stream.pipeline.fallback import MAIN, VERSION_NAMES
from inferline_stream.pipeline.model_server import ModelServer
from inferline_stream.pipeline.names import HEADER_PREFIX
from inferline_stream.pipeline.topology import Codec, Edge, Pipeline, Result, Stage, is_asynchronous
from inferline_stream.pipeline.units import count_of
from inferline_stream.pipeline.version import format_between

Outcomes = Sequence[Answer]
"""Of a batch, in the order of its events."""

MADE_BY = "made_by"
"""Field of a result that holds which version of the stage made it, where its type has one."""


class StageCode:
    """What a replica knows of its stage: how events are decoded and results encoded, and which edges they take.

    Args:
        pipeline: a valid pipeline.
        stage: the stage's name.
        topology: path of the topology file; code and conditions given by name are imported from its folder.
        weighs: whether it will be asked what events cost.

    Raises:
        InvalidTopology: there is no such stage, its code cannot be loaded, or a codec or an annotation is wrong.
    """

    def __init__(self, pipeline: Pipeline, stage: str, topology: str, *, weighs: bool = False) -> None:
        routes = routes_of(pipeline, stage)
        folder = os.path.dirname(os.path.abspath(topology))
        own = pipeline.stage(stage)
        self.run: Callable[..., Any] = code_of(own, folder)
        self.fallback = fallback_of(own, folder, self.run)
        """The faster version; None where the stage has none."""
        self.waits = is_asynchronous(self.run)
        """Whether the stage is asynchronous: it may be given several batches at once."""
        if own.concurrency is not None and own.concurrency > 1 and not self.waits:
            raise InvalidTopology(
                f"stage {stage!r}: concurrency {own.concurrency} needs `async def`: a plain function runs one batch at "
                "a time"
            )
        self.sleeps = own.server is not None and bool(own.server.sleep)
        """Whether the stage asks a server that can sleep."""
        self.emulated = own.emulated if isinstance(own.emulated, Emulated) else None
        self._cost = load_code(own.cost, folder) if weighs and isinstance(own.cost, str) else own.cost
        conditions = {
            child.name: load_code(edge.condition, folder) if isinstance(edge.condition, str) else edge.condition
            for child in pipeline.stages
            for edge in child.after
            if edge.parent is own
        }
        bits = [(1 << bit, conditions[child]) for bit, child in enumerate(routes.children)]
        self._most = own.most if own.many else None
        self._always = sum(bit for bit, condition in bits if condition is None)
        self._conditions = [(bit, condition) for bit, condition in bits if condition is not None]
        try:
            types = types_of(own)
            self._says_version = self.fallback is not None and _has_field(types.returns, MADE_BY)
            sink = pipeline.sinks.get(stage)
            out = codec(format_between(types.returns) if sink is None else sink.codec)
            self._encode, self._decoder = out.encode, partial(out.decoder, types.returns)
            self._decode = _decoder(pipeline, own, types.takes)
        except TypeError as error:
            raise InvalidTopology(f"stage {stage!r}: {error}") from error

    def process(
        self, call: Callable[[list[Any]], Any], inputs: Sequence[StageInput], *, version: int = MAIN
    ) -> Settled:
        """As `process_awaited`, for a stage that is a plain function."""
        return finished(self.process_awaited(call, inputs, waits=False, version=version))

    async def process_awaited(
        self,
        call: Callable[[list[Any]], Any],
        inputs: Sequence[StageInput],
        *,
        waits: bool = True,
        version: int = MAIN,
    ) -> Settled:
        """Run a batch from encoded inputs to encoded results: an outcome per input, in order, and the calls made.

        Args:
            call: the stage.
            inputs: of its events.
            waits: whether what the stage returns has to be awaited.
            version: of the stage that `call` is.

        Raises:
            StageFailed: see `run_batch_awaited`, as is `ServerUnavailable`.
        """
        decoded = [attempt(self._decode, each) for each in inputs]
        values = [value for value in decoded if not isinstance(value, Failed)]
        settle = partial(self.settle, version=version) if self._says_version else self.settle
        settled = await run_batch_awaited(call, settle, values, waits=waits) if values else Settled([], [])
        if len(values) == len(decoded):
            return settled
        following = iter(settled.outcomes)
        return settled._replace(outcomes=[v if isinstance(v, Failed) else next(following) for v in decoded])

    def weigh(self, inputs: Sequence[StageInput], *, emulated: bool) -> Settled:
        """Return what the topology says of each encoded input, in JSON: its cost, or its weight on emulated hardware.

        Raises:
            StageFailed: its function raises, or gives anything but a finite number of 0 or more.
        """
        function = self._cost if not emulated else None if self.emulated is None else self.emulated.weight
        assert callable(function), "asked of a topology that says nothing"
        name = getattr(function, "__qualname__", repr(function))
        decode: Callable[[Any], Any] = self._decode
        weights = list[Answer]()
        for each in inputs:
            try:
                weight = float(function(decode(each)))
            except Exception as error:
                raise StageFailed(
                    f"{name} raised {type(error).__name__}: {error}, on sample event {each!r:.80}"
                ) from error
            if not (math.isfinite(weight) and weight >= 0):
                raise StageFailed(
                    f"{name} gives {weight} for sample event {each!r:.80}; return a finite number, 0 or more"
                )
            weights.append(Done(msgspec.json.encode(weight), 0))
        return Settled(weights, [Call(len(inputs), 0.0)])

    def settle(self, result: Any, version: int = MAIN) -> Done | Many:
        """Return what the stage gives an event encoded, with the edges that it takes.

        What conditions, the encoder and an iterator of results raise is passed on.

        Raises:
            TooManyResults: more than the stage declares. No more than those are held, or encoded.
            TypeError: no list where the stage is to give many, or a result with a key or headers that are none.
        """
        if result is None:
            return Many()
        if self._most is None:
            return self._done(result, version)
        if isinstance(result, str | bytes | Mapping) or not isinstance(result, Iterable):
            raise TypeError(f"gives {type(result).__qualname__} for an event; declared many=True, it gives a list")
        first = list(itertools.islice(result, self._most + 1))
        if len(first) > self._most:
            most = count_of(self._most, "result")
            raise TooManyResults(f"gives more than {most} for an event; most= of the stage allows more")
        return Many(tuple(self._done(each, version) for each in first if each is not None))

    def _done(self, result: Any, version: int) -> Done:
        own = result if isinstance(result, Result) else None
        value = result if own is None else own.value
        edges = self._always
        if self._says_version:
            value = msgspec.structs.replace(value, **{MADE_BY: VERSION_NAMES[version]})
        for bit, condition in self._conditions:
            if condition(value):
                edges |= bit
        return Done(self._encode(value), edges) if own is None else Done(self._encode(value), edges, *_own(own))


class TooManyResults(ValueError):
    """A stage gives more results for an event than it declares."""


def _own(result: Result[Any]) -> tuple[bytes | None, tuple[tuple[str, bytes], ...]]:
    """Return the key and the headers that a result is to have.

    Raises:
        TypeError: a key that is neither text nor bytes, or headers that are no such things by name.
        ValueError: a header's name that is ours.
    """
    headers = []
    for name, value in result.headers.items():
        if not isinstance(name, str) or not isinstance(value, str | bytes):
            raise TypeError(f"Result header {name!r}: {value!r} must be text or bytes, by a name")
        if name.startswith(HEADER_PREFIX):
            raise ValueError(f"Result header {name!r}: names that begin with {HEADER_PREFIX} are not the user's")
        headers.append((name, _bytes(value)))
    if not isinstance(result.key, str | bytes | None):
        raise TypeError(f"Result key {result.key!r} must be text or bytes")
    return None if result.key is None else _bytes(result.key), tuple(headers)


def _bytes(text: str | bytes) -> bytes:
    return text.encode() if isinstance(text, str) else text


def fallback_of(stage: Stage, folder: str, run: Callable[..., Any]) -> Callable[..., Any] | None:
    """Return the code of a stage's fallback, as `code_of` does the stage's own; None where it has none.

    Raises:
        InvalidTopology: it cannot be loaded, or is not asynchronous where the stage is, or the other way round.
    """
    if stage.fallback is None:
        return None
    if isinstance(stage.fallback, ModelServer):
        from inferline_stream.dataplane.replica.served_model import served

        return served(stage.fallback, folder, beside=run)
    code = load_code(stage.fallback, folder) if isinstance(stage.fallback, str) else stage.fallback
    if is_asynchronous(code) != is_asynchronous(run):
        raise InvalidTopology(f"stage {stage.name!r}: of it and its fallback only one is declared with `async def`")
    return code


def _has_field(returns: Any, name: str) -> bool:
    return isinstance(returns, type) and issubclass(returns, msgspec.Struct) and name in returns.__struct_fields__


def code_of(stage: Stage, folder: str) -> Callable[..., Any]:
    """Return a stage's function or class: the declared one, one that is loaded by name, or one that asks a server.

    Raises:
        InvalidTopology: there is none, or it cannot be loaded.
    """
    if stage.server is not None:
        from inferline_stream.dataplane.replica.served_model import served

        return served(stage.server, folder)
    if stage.run is None:
        raise InvalidTopology(f"stage {stage.name!r} has neither code nor a server")
    return load_code(stage.run, folder) if isinstance(stage.run, str) else stage.run


def code_alone(pipeline: Pipeline, name: str, topology: str) -> tuple[Callable[..., Any], Callable[..., Any] | None]:
    """Return a stage's code, and that of its fallback, whatever the pipeline around it is like.

    What the stage and its conditions name is loaded and judged, which nothing else does before a run.

    Raises:
        InvalidTopology: it cannot be loaded, or what a name gives is no stage, or no condition.
    """
    folder = os.path.dirname(os.path.abspath(topology))
    try:
        stage = pipeline.stage(name)
        run = code_of(stage, folder)
        fallback = fallback_of(stage, folder, run)
        if isinstance(stage.run, str):
            stage_types(run)
        if isinstance(stage.fallback, str) and fallback is not None:
            stage_types(fallback)
        for edge in (edge for child in pipeline.stages for edge in child.after if edge.parent is stage):
            if isinstance(edge.condition, str):
                condition_type(load_code(edge.condition, folder))
    except (TypeError, KeyError) as error:
        raise InvalidTopology(last_line(error)) from error
    return run, fallback


def _decoder(pipeline: Pipeline, stage: Stage, takes: Any) -> Callable[[Any], Any]:
    if stage.gathers is not None:
        return _gather_decoder(stage.gathers, takes)
    if stage.is_join:
        return _join_decoder(stage, takes)
    format_ = _format_from(stage.after[0].parent) if stage.after else pipeline.codec_of(stage)
    return codec(format_).decoder(takes)


def _join_decoder(stage: Stage, takes: Any) -> Callable[[Mapping[str, bytes]], Any]:
    """A join's event has one field per parent, None where the branch was not taken."""
    fields = join_fields(takes) if takes is not Any else {}
    if fields is None:
        raise TypeError("a join's input must be a msgspec Struct with one field per parent")
    named = {field.encode_name: field.name for field in msgspec.structs.fields(takes)} if takes is not Any else {}
    decoders = {}
    for parent in (edge.parent for edge in stage.after):
        if takes is not Any and parent.name not in named:
            raise TypeError(f"its input {takes.__qualname__} has no field for {parent.name}; add one each")
        name = named.get(parent.name, parent.name)
        decoders[parent.name] = name, codec(_format_from(parent)).decoder(fields.get(parent.name, Any))

    def decode(parts: Mapping[str, bytes]) -> Any:
        values = {
            name: decode_part(parts[parent]) if parent in parts else None
            for parent, (name, decode_part) in decoders.items()
        }
        return values if takes is Any else takes(**values)

    return decode


def _gather_decoder(edge: Edge, takes: Any) -> Callable[[Sequence[bytes | None]], list[Any]]:
    """A gathered event is a list, with None in the place of a part that died."""
    part, _ = without_none((get_args(takes) or (Any,))[0])
    decode_part = codec(_format_from(edge.parent)).decoder(part)
    return lambda parts: [None if each is None else decode_part(each) for each in parts]


def _format_from(parent: Stage) -> str | Codec:
    return format_between(types_of(parent).returns)
