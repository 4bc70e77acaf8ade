"""What keeps the repository one house: plain words, one name for one thing, and a map whose places exist."""

import ast
import importlib
import re
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "inferline_stream"

NEVER = {
    "told": "reported, given, asked",
    "tells of": "reports, says",
    "whoever": "anyone who",
    "lest": "so that ... not",
    "anew": "again",
    "of late": "recently",
    "be had": "is available",
    "mend(?:s|ed|ing)?": "fix",
    "whether [^.\n]* or not to be": "whether",
    "is to be": "will be, is",
    "the very": "the same, leave it out",
    "heed(?:s|ed|ing)?": "follow, obey",
    "whence": "from where",
}
"""Words that are rare or old-fashioned in technical English, as patterns, and what to write instead."""

_OURS = ("inferline_stream", "connectors", "docker", "docs", "tests", "topologies")
_SUFFIXES = {".py", ".md", ".toml", ".yaml", ".yml", ".js", ".html", ".css", ".sh"}
"""Of prose and code. Data, such as quoted posts and vocabularies, say what they say."""

_QUOTED = "everybody told me it would be"
"""A line of text that the starter topology's sample holds."""

_IN_SEVERAL_ROOMS = {
    "actuator.py": "the protocol, and in its own room what implements it on Kubernetes",
    "server.py": "what listens: the broker, the live page; and a queue's server in the simulation",
}
"""Names of files in more than one room, each the right one there. Commands are files of their own names in `cli/`."""


def _texts():
    inside = (file for room in _OURS for file in (ROOT / room).rglob("*") if "__pycache__" not in file.parts)
    for file in sorted((*ROOT.glob("*"), *inside)):
        if file.suffix in _SUFFIXES and file != Path(__file__):
            yield str(file.relative_to(ROOT)), file.read_text().replace(_QUOTED, "")


def _modules():
    return [file.relative_to(ROOT) for file in sorted(PACKAGE.rglob("*.py")) if "__pycache__" not in file.parts]


_ANY = re.compile(rf"(?<![A-Za-z])(?:{'|'.join(NEVER).replace(' ', '[ _]')})(?![A-Za-z])", re.IGNORECASE)


def found_in(text: str) -> list[str]:
    """Words of the list in a text, each with its line and what to write instead."""
    return [
        f"{text.count(chr(10), 0, match.start()) + 1}: {match[0]!r}; {_better(match[0])}"
        for match in _ANY.finditer(text)
    ]


def _better(word: str) -> str:
    words = word.replace("_", " ")
    return next(f"write: {better}" for never, better in NEVER.items() if re.fullmatch(never, words, re.IGNORECASE))


def test_no_text_of_ours_has_a_word_of_the_list():
    found = [f"{name}:{what}" for name, text in _texts() for what in found_in(text)]

    assert not found, "\n".join(found)


def test_words_of_the_list_are_found_in_names_and_in_any_case_but_not_within_other_words():
    assert len(found_in("Whoever is_told _mend cannot_be_had whether it is green or not to be")) == 5
    assert not found_in("holding, recommend, amend, restless, latest, untold, is together, whether it is or not")


def test_no_two_classes_of_the_package_share_a_name():
    rooms = defaultdict(list)
    connectors = (file.relative_to(ROOT) for file in (ROOT / "connectors").rglob("*.py"))
    for file in (*_modules(), *connectors):
        for name in re.findall(r"^ *class (\w+)[(:]", (ROOT / file).read_text(), re.MULTILINE):
            rooms[name].append(str(file))

    assert len(rooms) > 400
    assert not {name: files for name, files in rooms.items() if len(files) > 1}


def test_no_two_rooms_have_a_file_of_one_name():
    rooms = defaultdict(list)
    for file in _modules():
        if file.parts[1] != "cli" and not file.name.startswith("__"):
            rooms[file.name].append(str(file))

    assert {name for name, files in rooms.items() if len(files) > 1} == _IN_SEVERAL_ROOMS.keys()


def test_every_command_is_in_the_file_of_its_name():
    from inferline_stream.cli.main import app

    commands = {command.callback.__name__ for command in app.registered_commands} - {"version"}
    groups = {group.name for group in app.registered_groups}
    assert len(commands) > 15
    assert not {name for name in commands | groups if not (PACKAGE / "cli" / f"{name}.py").exists()}


def test_every_file_that_the_architecture_page_names_exists():
    named = re.findall(r"`([\w./-]+(?:\.py|/))`", (ROOT / "docs" / "ARCHITECTURE.md").read_text())

    assert len(named) > 60
    missing = [name for name in named if "/" in name.rstrip("/") and not (ROOT / name).exists()]
    assert not missing


_DOTTED = re.compile(r"`([A-Za-z_]\w*)\.([A-Za-z_]\w*)(?:\.\w+)*(?:\([^`]*\))?`")


def _dotted_names(tree):
    docstrings = (node.value.value for node in ast.walk(tree) if isinstance(node, ast.Expr) and _is_text(node.value))
    return {found.groups() for text in docstrings for found in _DOTTED.finditer(text)}


def _is_text(node):
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _names_within(tree):
    """Every name that a module or class defines, imports or sets."""
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
            case ast.Name(id=name) | ast.Attribute(attr=name):
                yield name
            case ast.alias(name=name, asname=other):
                yield (other or name).rpartition(".")[2]


def _is_there(head, name):
    """Whether a library has the name, where it is one of a class: other words with dots are settings and files."""
    if head[0].isupper() or not name[0].isupper():
        return True
    try:
        return hasattr(importlib.import_module(head), name)
    except ModuleNotFoundError:
        return False


def test_every_dotted_name_in_a_docstring_still_exists():
    files = [ROOT / file for file in _modules()] + sorted((ROOT / "connectors").rglob("*.py"))
    trees = {file: ast.parse(file.read_text()) for file in files}
    known = defaultdict(set)
    for file, tree in trees.items():
        place = file.parent if file.stem == "__init__" else file
        known[place.stem].update(_names_within(tree))
        known[place.parent.name].add(place.stem)
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                known[node.name].update(_names_within(node))

    named = {(file, *name) for file, tree in trees.items() for name in _dotted_names(tree)}
    assert len(named) > 100
    wrong = [
        f"{file.relative_to(ROOT)}: `{head}.{name}`"
        for file, head, name in sorted(named)
        if name not in known.get(head, ()) and not (head not in known and _is_there(head, name)) and name not in _OTHERS
    ]
    assert not wrong, "\n".join(wrong)


_OTHERS = ("py", "json", "retention")
"""What looks the same: endings of files, and a setting of Kafka's, ``offsets.retention.minutes``."""
