"""What all commands share: options, environment variables, log format, errors as messages with an exit code."""

from __future__ import annotations

import functools
import inspect
import os
import signal
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer
from msgspec import Meta
from typer.core import TyperCommand, TyperGroup, TyperOption

from inferline_stream.cli.options import LogOptions
from inferline_stream.cli.output import log_to_stderr, print_in_any_encoding
from inferline_stream.errors import InferlineError
from inferline_stream.safe_text import printable
from inferline_stream.settings import check_variables, kafka_security

INTERRUPTED, TERMINATED = 130, 143


class Terminated(KeyboardInterrupt):
    """SIGTERM: ends what Ctrl-C would end, with an exit code of its own."""


class CommandGroup(TyperGroup):
    """Turns the errors that users can do something about into a message and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        signal.signal(signal.SIGTERM, _Terminating())
        print_in_any_encoding()
        try:
            check_variables(flag_variables(self))
            kafka_security()  # processes below would try for as long as they may
            return super().invoke(ctx)
        except InferlineError as error:
            _fail(error)
        except BaseExceptionGroup as group:
            ours, others = group.split(InferlineError)
            if ours is None or others is not None:
                raise
            _fail(_first(ours))
        except KeyboardInterrupt as error:
            by_sigterm = terminated(error)
            print("terminated" if by_sigterm else "interrupted", file=sys.stderr)
            raise typer.Exit(TERMINATED if by_sigterm else INTERRUPTED) from None


class CliCommand(TyperCommand):
    """A command each of whose flags may also be set as ``INFERLINE_<FLAG>``."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        for option in self.params:
            if isinstance(option, TyperOption) and option.name and option.envvar is None:
                flag = max(option.opts, key=len).removeprefix("--").replace("-", "_")
                option.envvar, option.show_envvar = variable(flag), False  # said once, in `--help` of all

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse; a value that is refused is named."""
        try:
            return super().parse_args(ctx, args)
        except typer.BadParameter as error:
            given = _refused(error)
            if given and given not in error.message:
                error.message = f"{given}: {error.message}"
            raise


def _refused(error: typer.BadParameter) -> str:
    """The value that Typer's validation found wrong, as it was written; Typer keeps it in the cause alone."""
    errors = getattr(error.__cause__, "errors", None)
    return "" if errors is None else repr(errors()[0]["input"])


def flag_variables(group: Any) -> dict[str, str]:
    """Variables of every flag of a group's commands, with the flag."""
    found: dict[str, str] = {}
    for command in group.commands.values():
        if isinstance(command, TyperGroup):
            found |= flag_variables(command)
        options = (option for option in command.params if isinstance(option, TyperOption) and option.envvar)
        found |= {str(option.envvar): max(option.opts, key=len) for option in options}
    return found


def variable(flag: str) -> str:
    """Environment variable of a flag."""
    return f"INFERLINE_{flag.upper()}"


def add_commands(app: typer.Typer, commands: Iterable[tuple[Callable[..., None], str]]) -> None:
    """Add (function, example) pairs; each command gets the options that all share."""
    for function, example in commands:
        app.command(cls=CliCommand, epilog=f"Example: {example}")(_command(function))


def add_group(app: typer.Typer, name: str, about: str, commands: Sequence[tuple[Callable[..., None], str]]) -> None:
    """Add (function, example) pairs as the sub-commands of one command."""
    example = f"Example: inferline-stream {name} {commands[0][0].__name__} --help"
    group = typer.Typer(help=about, epilog=example, no_args_is_help=True)
    add_commands(group, commands)
    app.add_typer(group, name=name)


def _command(function: Callable[..., None]) -> Callable[..., None]:
    """The command as Typer takes it: an option for each field of a group, and `--log-format` and `--log-level`."""
    own = inspect.signature(function, eval_str=True).parameters.values()
    logs = inspect.Parameter("logs", inspect.Parameter.KEYWORD_ONLY, annotation=LogOptions)

    @functools.wraps(function)
    def command(**given: Any) -> None:
        lines: LogOptions = _value(logs, given)
        log_to_stderr(lines.log_format, lines.log_level)
        function(**{parameter.name: _value(parameter, given) for parameter in own})

    options = [option for parameter in (*own, logs) for option in _options(parameter)]
    vars(command)["__signature__"] = inspect.Signature(options)
    command.__annotations__ = {option.name: option.annotation for option in options}
    return command


def _fields(of: inspect.Parameter) -> Iterable[inspect.Parameter]:
    """The fields of a group of options; none of one option."""
    group: type[Any] = of.annotation
    return inspect.signature(group, eval_str=True).parameters.values() if is_dataclass(group) else ()


def _options(of: inspect.Parameter) -> list[inspect.Parameter]:
    """What a parameter is on the command line: one option, or all those of a group."""
    if fields := _fields(of):
        return [option for each in fields for option in _options(each)]
    annotation = of.annotation
    for meta in getattr(annotation, "__metadata__", ()):
        if isinstance(meta, Meta):  # of an option that the rooms below know
            option = typer.Option(help=meta.description, min=meta.ge, max=meta.le, metavar=meta.title)
            annotation = Annotated[annotation.__origin__, option]
    return [of.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=annotation)]


def _value(of: inspect.Parameter, given: Mapping[str, Any]) -> Any:
    """A parameter's value: what was given for it, or a group of what was given for its fields."""
    if fields := _fields(of):
        return of.annotation(**{each.name: _value(each, given) for each in fields})
    return given[of.name]


class _Terminating:
    """SIGTERM's handler: does what Ctrl-C would, which asyncio turns into an orderly end, and remembers that it did.

    An exception raised from here could come up anywhere, also where it is swallowed.
    """

    def __init__(self) -> None:
        self.heard = False

    def __call__(self, _number: int, frame: FrameType | None) -> None:
        self.heard = True
        interrupt = signal.getsignal(signal.SIGINT)
        if not callable(interrupt):  # ignored, as a shell has it for what runs in its background
            raise Terminated
        interrupt(signal.SIGINT, frame)


def terminated(error: KeyboardInterrupt) -> bool:
    """Whether it was SIGTERM, not Ctrl-C."""
    handler = signal.getsignal(signal.SIGTERM)
    return isinstance(error, Terminated) or (isinstance(handler, _Terminating) and handler.heard)


def _fail(error: BaseException) -> None:
    problems = getattr(error, "problems", None) or (str(error),)
    here = f"{Path.cwd()}{os.sep}"
    for problem in problems:
        text = printable(problem.replace(here, ""), keep="\n")
        print(f"error: {text}", file=sys.stderr)
    raise typer.Exit(getattr(error, "exit_code", 1)) from None


def _first(group: BaseExceptionGroup[Any]) -> BaseException:
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
