"""Writes the pages of the reference that follow from the code: topology API, commands, settings, topics and rights.

python docs/reference_pages.py          a test fails where a page is not what this writes
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import io
import re
import tempfile
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import typer.main

import inferline_stream
from inferline_stream import settings
from inferline_stream.cli.init import init
from inferline_stream.cli.main import app
from inferline_stream.dataplane.kafka_permissions import permissions
from inferline_stream.dataplane.topology_loader import load_topology
from inferline_stream.kafka.pipeline_topics import topics_of
from inferline_stream.pipeline.units import format_duration

FOLDER = Path(__file__).parent / "reference"
NOTE = "<!-- Written by docs/reference_pages.py: change the code, not this page. -->\n\n"
SHARED = ("log_format", "log_level", "help")
"""Options of every command, described once."""


def pages() -> dict[str, str]:
    """Return every page's text by its file's name."""
    found = {"api.md": api(), "commands.md": commands(), "settings.md": knobs(), "topics.md": topics()}
    return {name: NOTE + text for name, text in found.items()}


def api() -> str:
    """What a topology imports."""
    parts = ["# Topology API", "A topology imports these from `inferline_stream`: see [writing one](topology.md)."]
    for name in inferline_stream.__all__:
        found = getattr(inferline_stream, name)
        parts += [f"## {name}", f"```python\n{name}{_signature(found)}\n```", _described(inspect.getdoc(found) or "")]
        for method, member in vars(found).items():
            if not method.startswith("_") and inspect.isfunction(member) and not issubclass(found, Exception):
                parts += [f"### {name}.{method}", f"```python\n{method}{_signature(member)}\n```"]
                parts += [_described(inspect.getdoc(member) or "")]
    return "\n\n".join(parts) + "\n"


def _signature(of: Any) -> str:
    """The signature, one parameter a line where it is long."""
    try:
        signature = inspect.signature(of)
    except ValueError:
        return "(...)"
    kept = [parameter for parameter in signature.parameters.values() if parameter.name != "self"]
    whole = _unquoted(str(signature.replace(parameters=kept)))
    if len(whole) < 100:
        return whole
    keywords = next((n for n, p in enumerate(kept) if p.kind is p.KEYWORD_ONLY), None)
    lines = [_unquoted(str(parameter)) for parameter in kept]
    if keywords is not None:
        lines.insert(keywords, "*")
    return "(" + "".join(f"\n    {line}," for line in lines) + "\n)" + whole[whole.rindex(")") + 1 :]


def _unquoted(signature: str) -> str:
    """Annotations are text, which a signature shows in quotes."""
    bare = re.sub(r"""(: |-> )(['"])(.*?)\2(?=[,)\n ]|$)""", r"\1\3", signature)
    return bare.removesuffix(" -> None").replace("'", '"')


def _described(doc: str) -> str:
    """A Google-style docstring as Markdown."""
    doc = re.sub(r"``(.+?)``", r"`\1`", doc)
    text, *sections = re.split(r"^(Args|Raises|Returns):\n", doc, flags=re.MULTILINE)
    parts = [_text(text)]
    for title, body in zip(sections[::2], sections[1::2], strict=True):
        entries = re.split(r"^    (?=\S)", body, flags=re.MULTILINE)[1:]
        if title == "Returns":
            parts.append("Returns " + " ".join(body.split()))
            continue
        rows = [" ".join(entry.split()).partition(": ") for entry in entries]
        head = ("argument" if title == "Args" else "raises", "meaning")
        parts.append(_table(head, ((f"`{name}`", meaning) for name, _, meaning in rows)))
    return "\n\n".join(part for part in parts if part)


def _text(text: str) -> str:
    """Paragraphs, and code where they are indented."""
    parts: list[str] = []
    for paragraph in re.split(r"\n\n(?=\S)|\n\n(?=    \S)(?<!\n    )", text.strip()):
        if paragraph.startswith("    "):
            parts.append(f"```python\n{inspect.cleandoc(paragraph)}\n```")
        else:
            parts.append(re.sub("::$", ":", " ".join(paragraph.split())))
    return "\n\n".join(parts)


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    def line(cells: Iterable[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    head = tuple(head)
    return "\n".join([line(head), "|" + "---|" * len(head), *map(line, rows)])


def commands() -> str:
    """Every command with its arguments and options."""
    group: Any = typer.main.get_command(app)
    parts = ["# Commands", _text(group.help), _text(group.epilog or "").replace(". ", ".\n\n", 1)]
    shared = next(iter(group.commands.values()))
    options = [option for option in shared.params if option.name in SHARED]
    parts += ["Every command takes these:", _options(options)]
    parts += ["[JSON output](json-output.md) describes every document of `--output json`."]
    for name, command in sorted(_leaves(group.commands)):
        parts += [f"## {name}", _text(command.help or "")]
        arguments = " ".join(_shown(a) for a in command.params if a.param_type_name == "argument")
        parts.append(f"```console\ninferline-stream {f'{name} {arguments}'.strip()}\n```")
        own = [o for o in command.params if o.name not in SHARED and getattr(o, "help", None)]
        if own:
            parts.append(_options(own))
        if command.epilog:
            parts.append(_text(command.epilog))
    return "\n\n".join(part for part in parts if part) + "\n"


def _leaves(of: Mapping[str, Any], before: str = "") -> list[tuple[str, Any]]:
    found = []
    for name, command in of.items():
        inner = getattr(command, "commands", None)
        found += _leaves(inner, f"{before}{name} ") if inner else [(f"{before}{name}", command)]
    return found


def _shown(argument: Any) -> str:
    name = (argument.metavar or argument.name).upper()
    return name if argument.required else f"[{name}]"


def _options(options: Iterable[Any]) -> str:
    rows = []
    for option in options:
        is_argument = option.param_type_name == "argument"
        names = _shown(option) if is_argument else ", ".join([*option.opts, *option.secondary_opts])
        default = option.default() if callable(option.default) else option.default
        given = "" if default in (None, "", False, True) or option.required else f"; by default `{default}`"
        annotation = option.type_descriptor.annotation
        literals = (a for a in (annotation, *get_args(annotation)) if get_origin(a) is Literal)
        choices = ", ".join(f"`{choice}`" for literal in literals for choice in get_args(literal))
        meaning = " ".join((option.help or "").split()) + (choices and f" ({choices})")
        rows.append((f"`{names}`", meaning + given))
    return _table(("", "meaning"), rows)


def knobs() -> str:
    """Every setting, with its unit, default and reason."""
    rows = []
    reasons = settings.reasons()
    for field in dataclasses.fields(settings.Settings):
        rows.append((f"`{field.name}`", _value(field.name, field.default), " ".join(reasons[field.name].split())))
    parts = [
        "# Settings",
        "Set a setting as `INFERLINE_<NAME>` in the environment of `run`, for example `INFERLINE_TUNER_STEP_S=50ms`. A "
        "bare number is seconds or bytes. `inferline-stream check --show-config` prints what is in force, and why.",
        _table(("setting", "default", "meaning"), rows),
        "## Kafka's credentials",
        _described(inspect.getdoc(settings.KafkaSecurity) or ""),
        _table(("variable",), ((f"`{name}`",) for name in settings.KAFKA_VARIABLES)),
        "`INFERLINE_DISPATCHER_KAFKA_*` are the same for the dispatchers, where these are another Kafka user: see "
        "[security](../explanation/security.md#roles-in-kafka).",
    ]
    return "\n\n".join(parts) + "\n"


def _value(name: str, value: Any) -> str:
    if name.endswith("_s"):
        return format_duration(value)
    if name.endswith("_bytes"):
        return f"{value / 2**20:g} MiB"
    return f"{value:g}"


def topics() -> str:
    """Topics and rights of the starter topology."""
    with tempfile.TemporaryDirectory() as folder:
        with contextlib.redirect_stdout(io.StringIO()):
            init(Path(folder) / "reviews")
        pipeline = load_topology(Path(folder) / "reviews")
    rows = (
        (f"`{topic.name}`", ", ".join(f"`{name}={value}`" for name, value in topic.settings.items()), topic.purpose)
        for topic in topics_of(pipeline)
    )
    rights = (
        (
            right.role,
            f"{right.resource} `{right.name}{'*' if right.prefixed else ''}`",
            ", ".join(right.operations),
            right.needed_by,
        )
        for right in permissions(pipeline)
    )
    parts = [
        "# Topics and rights",
        "These are the topics of the starter topology (`inferline-stream init`), whose pipeline is `reviews`, with "
        "the settings that they are created with. `inferline-stream topics topology.py` lists those of yours, and "
        "`--print` prints the commands that create them and grant the rights.",
        _table(("topic", "settings", "purpose"), rows),
        "## Rights",
        "These are the least rights of each role, and what needs them. "
        "[Security](../explanation/security.md#roles-in-kafka) says who has which role.",
        _table(("role", "on", "operations", "needed by"), rights),
    ]
    return "\n\n".join(parts) + "\n"


def llms() -> str:
    """Every page with its first sentence, by the site's menu (llmstxt.org)."""
    menu = tomllib.loads((FOLDER.parent / "zensical.toml").read_text("utf-8"))["project"]
    parts = [f"# {menu['site_name']}\n\n> {menu['site_description']}"]
    for entry in menu["nav"]:
        for title, inside in entry.items():
            listed = inside if isinstance(inside, list) else [entry]
            lines = [f"- [{name}]({path}){_first(path)}" for each in listed for name, path in each.items()]
            parts.append("\n".join([f"## {title}\n", *lines]))
    return "\n\n".join(parts) + "\n"


def _first(path: str) -> str:
    """The sentence that follows a page's title, after a colon; empty where none does."""
    text = (FOLDER.parent / path).read_text("utf-8").removeprefix(NOTE).partition("\n")[2].lstrip()
    prose = " ".join(text.partition("\n\n")[0].split()) if re.match(r"\w|`[^`]", text) else ""
    first = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", prose).partition(". ")[0].rstrip(".:")
    return f": {first}" if first else ""


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    (FOLDER.parent / "llms.txt").write_text(llms(), encoding="utf-8")
    for file, written in pages().items():
        (FOLDER / file).write_text(written, encoding="utf-8")
