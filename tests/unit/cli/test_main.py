"""The command line as a whole: quick to answer, and errors as messages with an exit code."""

import subprocess
import sys
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from inferline_stream.cli.command_group import CommandGroup, add_commands
from inferline_stream.cli.main import app
from inferline_stream.cli.options import Platform, PodOptions, SearchOptions, as_words
from inferline_stream.errors import (
    GateFailed,
    Infeasible,
    InferlineError,
    InvalidTopology,
    StageFailed,
    Unreachable,
    UsageError,
)

HEAVY = ("numpy", "aiokafka", "numba", "faust", "uvloop", "prometheus_client")


def failing(error: BaseException) -> typer.Typer:
    commands = typer.Typer(cls=CommandGroup, pretty_exceptions_enable=False)

    @commands.callback()
    def options() -> None: ...

    @commands.command()
    def fail() -> None:
        raise error

    return commands


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InferlineError("x"), 1),
        (StageFailed("x"), 1),
        (UsageError("x"), 2),
        (InvalidTopology("x"), 3),
        (Infeasible("x", 0.1), 4),
        (Unreachable("x"), 5),
        (GateFailed("x"), 6),
        (ExceptionGroup("many", [ExceptionGroup("inner", [Unreachable("x")])]), 5),
    ],
)
def test_an_error_is_a_message_and_an_exit_code(error: Any, code: int) -> None:
    result = CliRunner().invoke(failing(error), ["fail"])
    assert result.exit_code == code
    assert result.stderr == "error: x\n"
    assert result.stdout == ""


def test_every_problem_has_a_line_of_its_own() -> None:
    result = CliRunner().invoke(failing(InvalidTopology("one", "two")), ["fail"])
    assert result.stderr == "error: one\nerror: two\n"


def test_ctrl_c_ends_with_130() -> None:
    result = CliRunner().invoke(failing(KeyboardInterrupt()), ["fail"])
    assert result.exit_code == 130
    assert result.stderr == "interrupted\n"


@pytest.mark.parametrize(
    "error",
    [
        ValueError("a bug"),
        ExceptionGroup("many", [ValueError("a bug")]),
        ExceptionGroup("many", [Unreachable("x"), ValueError("a bug")]),
    ],
)
def test_a_bug_is_not_dressed_up(error: Exception) -> None:
    result = CliRunner().invoke(failing(error), ["fail"])
    assert result.exception is error


def test_help_imports_nothing_heavy() -> None:
    code = f"""
import sys
from typer.testing import CliRunner
from inferline_stream.cli.command_group import CommandGroup
from inferline_stream.cli.main import app
result = CliRunner().invoke(app, ["--help"])
assert result.exit_code == 0, result.output
for command in ("init", "check", "profile", "plan", "run", "version"):
    assert command in result.output, command
    assert CliRunner().invoke(app, [command, "--help"]).exit_code == 0, command
print([name for name in {HEAVY!r} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize("arguments", [["version"], ["--version"]])
def test_the_version_is_the_installed_one(arguments: list[str]) -> None:
    from importlib.metadata import version

    result = CliRunner().invoke(app, arguments)
    assert result.stdout == f"inferline-stream {version('inferline-stream')}\n"


@pytest.mark.parametrize("arguments", [["bogus"], ["plan"], ["plan", "x", "--output", "xml"], []])
def test_a_command_line_that_cannot_be_ends_with_2(arguments: list[str]) -> None:
    assert CliRunner().invoke(app, arguments).exit_code == 2


@pytest.mark.parametrize(("old", "instead"), [("operate", "deploy TOPOLOGY --target kubernetes --dry-run")])
def test_a_command_of_the_past_is_answered_with_what_to_type_instead(old: str, instead: str) -> None:
    result = CliRunner().invoke(app, [old, "--namespace", "ml"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == f"error: `{old}` is no command any more: type `inferline-stream {instead}`\n"


@pytest.mark.parametrize(
    ("variable", "command", "flag"),
    [
        ("INFERLINE_OUTPUT", "version", "--output"),
        ("INFERLINE_SPEED_UP", "run x.py", "--speed-up"),
        ("INFERLINE_UI_PORT", "run x.py", "--ui-port"),
        ("INFERLINE_LAST", "explain x.py", "--last"),
    ],
)
def test_a_flag_is_read_from_the_variable_of_its_name(variable: str, command: str, flag: str) -> None:
    wrong = CliRunner().invoke(app, command.split(), env={variable: "?"})
    assert wrong.exit_code == 2
    assert flag in wrong.output


def test_each_flag_of_a_command_has_a_variable_of_its_own() -> None:
    def commands(group):
        for command in group.commands.values():
            yield from commands(command) if hasattr(command, "commands") else [command]

    found = 0
    for command in commands(typer.main.get_command(app)):
        options = [each for each in command.params if each.param_type_name == "option" and each.name != "help"]
        variables = {each.envvar for each in options} - {None}
        assert len(variables) == len(options), command.name
        found += len(options)
    assert found > 100


@pytest.mark.parametrize(
    ("search", "platform"),
    [
        (SearchOptions(), Platform()),
        (
            SearchOptions(algorithm="exact", reserve=1.5, seed=7),
            Platform(on="kubernetes", pods=PodOptions(image="r/i:1", path="a b.py"), oversubscribe=True),
        ),
    ],
)
def test_groups_of_options_are_written_as_they_are_given(search: SearchOptions, platform: Platform) -> None:
    seen = []

    def command(*, search: SearchOptions, platform: Platform) -> None:
        seen.append((search, platform))

    commands = typer.Typer(cls=CommandGroup)
    add_commands(commands, ((command, "command"),))
    result = CliRunner().invoke(commands, [*as_words(search), *as_words(platform)])
    assert result.exit_code == 0, result.output
    assert seen == [(search, platform)]
