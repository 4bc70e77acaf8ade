"""Which version of a stage's code was measured: a digest of everything it uses from the topology's folder."""

from __future__ import annotations

import ast
import contextlib
import hashlib
import inspect
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

_PLAIN = (str, bytes, int, float, type(None), tuple, frozenset, list, dict, set)


def code_digest(run: Callable[..., Any] | str, folder: Path) -> str:
    """SHA-256 of a stage's source and, in turn, of what it names: functions, classes, constants, modules.

    Only what lies in the topology's folder counts; a change of the topology around the stage does not
    change it. Code given by name is not imported: the source of its module counts, and of what that imports.
    """
    digest = hashlib.sha256()
    for part in sorted(_sources(run, folder) if isinstance(run, str) else _parts(run, folder)):
        digest.update(part.encode())
        digest.update(b"\0")
    return digest.hexdigest()


def _sources(name: str, folder: Path) -> Iterator[str]:
    """The name of code, and every file of the folder that importing it would read."""
    yield name
    waiting, seen = [name.partition(":")[0]], set[Path]()
    while waiting:
        parts = waiting.pop().split(".")
        stems = [folder.joinpath(*parts[: i + 1]) for i in range(len(parts))]
        for file in (file for stem in stems for file in (stem.with_suffix(".py"), stem / "__init__.py")):
            if file in seen or not file.is_file():
                continue
            seen.add(file)
            yield f"file {file.relative_to(folder)} {_contents(file)}"
            with contextlib.suppress(SyntaxError):
                waiting += _imports(ast.parse(_contents(file)), file.relative_to(folder).parent.parts)


def _imports(tree: ast.AST, package: tuple[str, ...]) -> Iterator[str]:
    """Modules that code of a package may import; names that it takes from a module may be modules, too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else ()
            base = [*above, *([node.module] if node.module else [])]
            yield from (".".join([*base, alias.name]) for alias in node.names if alias.name != "*" or base)


def _parts(run: Callable[..., Any], folder: Path) -> Iterator[str]:
    waiting: list[Any] = [run]
    seen: set[int] = set()
    while waiting:
        found = waiting.pop()
        if id(found) in seen:
            continue
        seen.add(id(found))
        if isinstance(found, types.ModuleType):
            yield f"module {found.__name__} {_contents(Path(found.__file__ or ''))}"
            continue
        if not _inside(found, folder):
            continue
        yield f"{found.__module__}.{found.__qualname__} {_source(found)}"
        waiting += found.__mro__ if inspect.isclass(found) else ()
        for function in _functions(found):
            yield from _constants(function)
            waiting += _named(function, folder)


def _functions(found: Any) -> list[types.FunctionType]:
    """A function itself; of a class, and of its bases, every method."""
    if inspect.isfunction(found):
        return [found]
    members = (member for base in found.__mro__ for member in vars(base).values())
    unwrapped = (getattr(member, "__func__", getattr(member, "fget", member)) for member in members)
    return [member for member in unwrapped if inspect.isfunction(member)]


def _named(function: types.FunctionType, folder: Path) -> list[Any]:
    """Functions, classes and modules of the folder that a function names, those that it imports included."""
    found: list[Any] = []
    for name in _names(function.__code__):
        value = function.__globals__.get(name)
        if inspect.isfunction(value) or inspect.isclass(value):
            found.append(value)
        module = value if isinstance(value, types.ModuleType) else sys.modules.get(name)
        if isinstance(module, types.ModuleType) and _lies_in(getattr(module, "__file__", None), folder):
            found.append(module)
        elif value is None and (folder / f"{name}.py").is_file():  # imported by the function, when it runs
            beside = types.ModuleType(name)
            beside.__file__ = str(folder / f"{name}.py")
            found.append(beside)
    return found


def _constants(function: types.FunctionType) -> Iterator[str]:
    for name in sorted(_names(function.__code__)):
        value = function.__globals__.get(name)
        if name in function.__globals__ and isinstance(value, _PLAIN):
            with contextlib.suppress(
                TypeError, ValueError, RecursionError
            ):  # holds objects: their code counts, if named
                encoded = msgspec.json.encode(value, order="deterministic")
                yield f"{function.__module__}.{name} = {encoded!r}"


def _names(code: types.CodeType) -> set[str]:
    """Names that code refers to, nested functions included."""
    nested = (constant for constant in code.co_consts if isinstance(constant, types.CodeType))
    return set(code.co_names).union(*(_names(constant) for constant in nested))


def _inside(found: Any, folder: Path) -> bool:
    module = sys.modules.get(getattr(found, "__module__", None) or "")
    return _lies_in(getattr(module, "__file__", None), folder)


def _lies_in(file: str | None, folder: Path) -> bool:
    return file is not None and Path(file).is_relative_to(folder) and "site-packages" not in file


def _source(found: Any) -> str:
    try:
        return inspect.getsource(found)
    except (OSError, TypeError):
        return repr(found)


def _contents(file: Path) -> str:
    return file.read_text(errors="replace") if file.is_file() else ""
