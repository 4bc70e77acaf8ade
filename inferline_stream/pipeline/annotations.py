"""What a stage takes and returns, read from its annotations, and whether one stage's results suit the next."""

from __future__ import annotations

import inspect
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union, get_args, get_origin

import msgspec

from inferline_stream.pipeline.model_server import ModelServer
from inferline_stream.pipeline.topology import Result

if TYPE_CHECKING:
    from inferline_stream.pipeline.topology import Stage

_CODE_NAME = re.compile(r"(?!\d)\w+(\.(?!\d)\w+)*:(?!\d)\w+(\.(?!\d)\w+)*", re.ASCII)


@dataclass(frozen=True, slots=True)
class StageTypes:
    """A stage as ``list[takes] -> list[returns]``; `Any` where nothing is annotated.

    ``returns`` is the type of a single result: of those that make a list where the stage gives many, and without the
    None that filters and the `Result` around it.
    """

    takes: Any
    returns: Any


def types_of(stage: Stage) -> StageTypes:
    """Return the types of a stage's events and results, without loading code that is given by name.

    Raises:
        TypeError: as `stage_types` and `check_code_name` do.
    """
    if stage.server is not None:
        declared = served_types(stage.server)
        return StageTypes(declared.takes, _result_type(declared.returns, many=stage.many))
    if stage.run is None:
        raise TypeError("has neither code nor a server; give a function, a class, or server=OpenInference(...)")
    if not isinstance(stage.run, str):
        declared = stage_types(stage.run)
        return StageTypes(declared.takes, _result_type(declared.returns, many=stage.many))
    check_code_name(stage.run)
    return StageTypes(*(Any if each is None else each for each in (stage.takes, stage.returns)))


def _result_type(returns: Any, *, many: bool) -> Any:
    """Type of a single result."""
    plain, _ = without_none(returns)
    if many and plain in (Any, object, list):
        return Any
    if many:
        origin, arguments = get_origin(plain), get_args(plain)
        if not (inspect.isclass(origin) and issubclass(origin, Iterable) and arguments) or issubclass(origin, Mapping):
            raise TypeError(
                f"is declared many=True and returns {describe(plain)} for an event; annotate `list[X] -> list[list[Y]]`"
            )
        plain, _ = without_none(arguments[0])
    if plain is Result or get_origin(plain) is Result:
        return (get_args(plain) or (Any,))[0]
    return plain


def check_code_name(name: str) -> None:
    """Check that a name of code has the form ``module:name``.

    Raises:
        TypeError: it has another form; the message says which form is needed.
    """
    if not _CODE_NAME.fullmatch(name):
        raise TypeError(f'{name!r} does not name code; write "module:name", e.g. "models.score:Score"')


def stage_types(run: Callable[..., Any]) -> StageTypes:
    """Types of the events that a stage takes and of its results.

    Args:
        run: the stage's function, or the class whose instances are called.

    Raises:
        TypeError: it cannot be called with one batch, is a generator, or its annotations are no
            batches or cannot be resolved; the message says what to write instead.
    """
    function = _called(run)
    hints = _hints(function)
    name = next(iter(_parameters(function, skip_self=inspect.isclass(run))), None)
    return StageTypes(
        _event_type(hints.get(name, Any) if name else Any, "takes"), _event_type(hints.get("return", Any), "returns")
    )


def served_types(server: ModelServer) -> StageTypes:
    """Types of the events that a server's ``request`` takes and of the results that its ``response`` gives.

    Raises:
        TypeError: one is no importable plain function, or takes other arguments than it is called with.
    """
    if not isinstance(server, ModelServer):
        raise TypeError(f"server {server!r} is none; write server=OpenInference(...), OpenAI(...) or RayServe(...)")
    for role, function, most in (("request", server.request, 1), ("response", server.response, 2)):
        name = getattr(function, "__qualname__", repr(function))
        if not inspect.isroutine(function) or "<" in name:
            raise TypeError(f"server {role} {name} is no function at the top of the file; write it with `def` there")
        if inspect.iscoroutinefunction(function):
            raise TypeError(f"server {role} {name} is asynchronous; write a plain function")
        if not any(_takes(function, count) for count in range(1, most + 1)):
            takes = "one event" if role == "request" else "the outputs, or the event and the outputs"
            raise TypeError(f"server {role} {name} must take {takes}")
    asked, answered = _hints(server.request), _hints(server.response)
    name = next(iter(_parameters(server.request)), None)
    return StageTypes(asked.get(name, Any) if name else Any, answered.get("return", Any))


def condition_type(condition: Callable[[Any], bool] | str) -> Any:
    """Type of the result that a condition judges; `Any` where it is not annotated, or given by name.

    Raises:
        TypeError: it is no importable plain function of one result that returns a bool.
    """
    if isinstance(condition, str):
        check_code_name(condition)
        return Any
    name = getattr(condition, "__qualname__", repr(condition))
    if not (inspect.isfunction(condition) or inspect.isbuiltin(condition)):
        raise TypeError(f"condition {name} is not a function; write `def` at the top of the file")
    if "<lambda>" in name:
        raise TypeError("a condition is a lambda, which no replica can import; write `def` at the top of the file")
    if "<locals>" in name:
        raise TypeError(f"condition {name} is nested in a function; move it to the top of the file")
    if inspect.iscoroutinefunction(condition):
        raise TypeError(f"condition {name} is asynchronous; write a plain function")
    if not _takes(condition, 1):
        raise TypeError(f"condition {name} must take exactly one argument, its parent's result")
    hints = _hints(condition)
    answer = hints.get("return", bool)
    guards = (typing.TypeGuard, getattr(typing, "TypeIs", typing.TypeGuard))
    if answer not in (bool, Any) and get_origin(answer) not in guards:
        raise TypeError(f"condition {name} returns {describe(answer)}; it must return bool")
    return hints.get(next(iter(_parameters(condition)), ""), Any)


def accepts(wanted: Any, given: Any) -> bool:
    """Whether every value of type ``given``, encoded and decoded again, is one of type ``wanted``.

    Differs from a type checker's rule in one way: a bool is no int, because it is not one in JSON.
    """
    wanted, given = _plain(wanted), _plain(given)
    if wanted in (Any, object) or given is Any or wanted == given:
        return True
    if _is_union(given):
        return all(accepts(wanted, member) for member in get_args(given))
    if _is_union(wanted):
        return any(accepts(member, given) for member in get_args(wanted))
    if get_origin(given) is Literal:
        if get_origin(wanted) is Literal:
            return set(get_args(given)) <= set(get_args(wanted))
        return all(accepts(wanted, type(value)) for value in get_args(given))
    if wanted is float and given is int:
        return True
    return _accepts_class(wanted, given)


def without_none(annotation: Any) -> tuple[Any, bool]:
    """The annotation without ``| None``, and whether it had it."""
    plain = _plain(annotation)
    if not _is_union(plain) or type(None) not in get_args(plain):
        return plain, False
    return Union[tuple(arg for arg in get_args(plain) if arg is not type(None))], True  # noqa: UP007  built at run time


def join_fields(takes: Any) -> dict[str, Any] | None:
    """Field → type of a join's input, by the names that stand in the encoded event; None if it is no Struct."""
    plain = _plain(takes)
    if not (inspect.isclass(plain) and issubclass(plain, msgspec.Struct)):
        return None
    return {field.encode_name: field.type for field in msgspec.structs.fields(plain)}


def describe(annotation: Any) -> str:
    """A type as its author wrote it, without module names."""
    annotation = _plain(annotation)
    if annotation is type(None):
        return "None"
    if _is_union(annotation):
        return " | ".join(describe(arg) for arg in get_args(annotation))
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return f"Literal[{', '.join(map(repr, arguments))}]"
    if arguments and origin is not None:
        return f"{describe(origin)}[{', '.join('...' if arg is ... else describe(arg) for arg in arguments)}]"
    return getattr(annotation, "__qualname__", None) or str(annotation)


def _called(run: Callable[..., Any]) -> Callable[..., Any]:
    """The function that is handed each batch."""
    if inspect.isclass(run):
        function: Any = next((vars(base)["__call__"] for base in run.__mro__ if "__call__" in vars(base)), None)
        if function is None:
            raise TypeError(f"class {run.__qualname__} has no `def __call__(self, events: list[X]) -> list[Y]`")
        if not _takes(run, 0):
            raise TypeError(f"class {run.__qualname__} cannot be constructed without arguments; give them defaults")
    elif inspect.isroutine(run):
        function = run
    elif isinstance(run, ModelServer):
        raise TypeError(f"the model server at {run.url} is given as code; write server= before it")
    else:
        raise TypeError(f"{run!r} is neither a function nor a class; give the class itself, not an instance")
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise TypeError(f"{function.__qualname__} is a generator; write a function that returns a list")
    if not _takes(function, 2 if inspect.isclass(run) else 1):
        raise TypeError(f"{function.__qualname__} must take exactly one argument, the list of events")
    return typing.cast("Callable[..., Any]", function)


def _takes(function: Callable[..., Any], count: int) -> bool:
    """Whether it can be called with so many arguments; yes for a builtin that does not give its signature."""
    try:
        inspect.signature(function).bind(*(object(),) * count)
    except TypeError:
        return False
    except ValueError:
        pass
    return True


def _parameters(function: Callable[..., Any], *, skip_self: bool = False) -> list[str]:
    try:
        names = list(inspect.signature(function).parameters)
    except ValueError:
        return []
    return names[1:] if skip_self else names


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function)
    except Exception as error:  # whatever an annotation's own expression raises
        name = getattr(function, "__qualname__", repr(function))
        raise TypeError(
            f"annotations of {name} cannot be resolved ({error}); import their types where replicas see them, "
            "not under TYPE_CHECKING"
        ) from None


def _event_type(annotation: Any, verb: str) -> Any:
    """X of ``list[X]``."""
    plain = _plain(annotation)
    if plain in (Any, object, list):
        return Any
    origin = get_origin(plain)
    arguments = get_args(plain)
    if not (inspect.isclass(origin) and issubclass(list, origin) and arguments):
        raise TypeError(f"{verb} {describe(plain)}, not a batch; annotate `list[X] -> list[Y]`, a result per event")
    return arguments[0]


def _plain(annotation: Any) -> Any:
    """The type below Annotated, NewType, aliases and type variables."""
    while True:
        if annotation is None:
            return type(None)
        if get_origin(annotation) is typing.Annotated:
            annotation = get_args(annotation)[0]
        elif hasattr(annotation, "__supertype__"):
            annotation = annotation.__supertype__
        elif type(annotation).__name__ == "TypeAliasType":
            annotation = annotation.__value__
        elif isinstance(annotation, TypeVar) or annotation is inspect.Parameter.empty:
            return Any
        else:
            return annotation


def _is_union(annotation: Any) -> bool:
    return get_origin(annotation) in (Union, types.UnionType)


def _accepts_class(wanted: Any, given: Any) -> bool:
    wanted_class, given_class = get_origin(wanted) or wanted, get_origin(given) or given
    if not (inspect.isclass(wanted_class) and inspect.isclass(given_class)):
        return False
    try:
        if not issubclass(given_class, wanted_class) or (given_class is bool and wanted_class is not bool):
            return False
    except TypeError:  # a Protocol that cannot be checked at run time
        return False
    pairs = zip(get_args(wanted), get_args(given), strict=False)
    return all(... in pair or accepts(*pair) for pair in pairs)
