"""Load a topology file: its folder first on `sys.path`, in the command line and in every replica alike."""

from __future__ import annotations

import importlib
import os
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from inferline_stream.errors import InvalidTopology
from inferline_stream.pipeline.annotations import check_code_name
from inferline_stream.pipeline.topology import Pipeline

REMOVED = {
    "agrees": "results of two versions are no longer compared; leave it out",
    "image": "no replica gets a container of its own; leave it out, and name an image for pods by --image",
}
"""What to do about an argument that topologies of yesterday give."""


def load_topology(path: str | Path) -> Pipeline:
    """Execute a topology file and return the pipeline that it declares.

    The file becomes the module of its own name (``topology.py`` is ``topology``), executed afresh at
    each call. Modules beside it win over installed ones of the same name, and over those that another
    topology's folder brought into this process.

    Args:
        path: the file, or the folder that holds a ``topology.py``; with ``:name`` behind it, the pipeline of that name.

    Returns:
        The pipeline named, else the module's ``pipeline``, or its only `Pipeline` under whatever name. It has not been
        validated.

    Raises:
        InvalidTopology: there is no such file, executing it failed (the message names file and line),
            or it declares no pipeline or several.
    """
    file, variable = file_and_name(Path(path))
    if file.stem in sys.stdlib_module_names or file.stem == "inferline_stream":
        raise InvalidTopology(f"{file}: would hide the module {file.stem!r}; rename the file, e.g. to topology.py")
    try:
        code = compile(file.read_bytes(), str(file), "exec", dont_inherit=True)
    except OSError as error:
        raise InvalidTopology(
            f"{path}: cannot be read ({error.strerror}); give a topology file or its folder"
        ) from None
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        line = f":{error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        what = getattr(error, "msg", str(error)) or "it is nested too deep"
        raise InvalidTopology(f"{file}{line}: {type(error).__name__}: {what}") from error
    _put_first(file.parent)
    _forget_namesakes(file.parent)
    module = ModuleType(file.stem)
    module.__file__ = str(file)
    sys.modules[file.stem] = module  # before it runs: annotations are resolved through it
    try:
        with _exit_seen():
            exec(code, module.__dict__)  # noqa: S102  a topology is a program, and running it is what loading means
    except KeyboardInterrupt:  # somebody's Ctrl-C, as far as anybody can know
        raise
    except BaseException as error:
        sys.modules.pop(file.stem, None)
        raise InvalidTopology(f"{where_raised(error, file)}: {_removed(error) or last_line(error)}") from error
    return _pipeline_of(module, file, variable)


def _removed(error: BaseException) -> str:
    """Return what replaces an argument of yesterday that a topology gives; empty where the error is another one."""
    word = str(error).partition("unexpected keyword argument '")[2].partition("'")[0]
    return f"{word} is no longer known: {REMOVED[word]}" if word in REMOVED else ""


@contextmanager
def _exit_seen() -> Iterator[None]:
    """Turn `os._exit` of a file that is executed into an exception: it would end this process without a word."""
    really, loading, pid = os._exit, True, os.getpid()

    def refused(status: int) -> NoReturn:
        if loading and os.getpid() == pid:  # else it is a child's, or of what the file keeps for later
            raise SystemExit(f"os._exit({status})")
        really(status)

    os._exit = refused
    try:
        yield
    finally:
        os._exit, loading = really, False


def load_code(name: str, folder: str | Path) -> Any:
    """Import the code that a topology gives by name.

    Args:
        name: ``module:name``, e.g. ``models.score:Score``.
        folder: the topology's; modules in it win over installed ones.

    Raises:
        InvalidTopology: the name has another form, its module cannot be imported, or lacks what is named.
    """
    try:
        check_code_name(name)
    except TypeError as error:
        raise InvalidTopology(str(error)) from None
    folder = Path(folder).resolve()
    module, _, inner = name.partition(":")
    _put_first(folder)
    _forget_namesakes(folder)
    try:
        found: Any = importlib.import_module(module)
        for part in inner.split("."):
            found = getattr(found, part)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        at = where_raised(error, folder / "topology.py")
        where = "" if at.endswith("topology.py") else f"{at}: "
        remedy = f"give a module in {folder} or an installed one, and a name that it defines"
        raise InvalidTopology(f"{where}code {name!r} cannot be loaded ({last_line(error)}); {remedy}") from error
    return found


def file_and_name(path: Path) -> tuple[Path, str]:
    """The file that a path means, absolute, and the pipeline's name behind a colon, if there is one."""
    variable = ""
    if ":" in path.name and not os.path.exists(path):
        stem, _, variable = path.name.rpartition(":")
        path = path.parent / stem
    path = Path(os.path.realpath(path))  # Path.resolve raises for a circle of links, and is_dir for a long name
    return (path / "topology.py" if os.path.isdir(path) else path), variable


def where_raised(error: BaseException, file: Path) -> str:
    """``file:line`` of the innermost frame inside the topology's folder, as a reader wants to open it."""
    inside = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).is_relative_to(file.parent) and "site-packages" not in frame.filename
    ]
    return f"{inside[-1].filename}:{inside[-1].lineno}" if inside else str(file)


def last_line(error: BaseException) -> str:
    """The last line of the error's traceback, e.g. ``ModuleNotFoundError: No module named 'torch'``."""
    return traceback.format_exception_only(error)[-1].strip()


def _put_first(folder: Path) -> None:
    if sys.path[:1] != [str(folder)]:
        sys.path[:] = [str(folder), *(entry for entry in sys.path if entry != str(folder))]


def _forget_namesakes(folder: Path) -> None:
    """Forget modules of other folders that have the name of one in this folder.

    Installed modules are kept even then: others in this process hold on to them.
    """
    installed = tuple(sysconfig.get_paths()[kind] for kind in ("stdlib", "platstdlib", "purelib", "platlib"))
    for entry in folder.iterdir():
        package = entry / "__init__.py"
        file = package if package.is_file() else entry
        known = sys.modules.get(entry.stem)
        origin = getattr(known, "__file__", None)
        if (
            file.suffix != ".py"
            or entry.stem in ("__main__", "inferline_stream")
            or origin is None
            or Path(origin) == file
        ):
            continue
        if not str(origin).startswith(installed):
            for name in [n for n in sys.modules if n == entry.stem or n.startswith(f"{entry.stem}.")]:
                del sys.modules[name]


def _pipeline_of(module: ModuleType, file: Path, variable: str) -> Pipeline:
    found = {id(value): name for name, value in vars(module).items() if isinstance(value, Pipeline)}
    if variable:
        named = getattr(module, variable, None)
        if not isinstance(named, Pipeline):
            there = f"; there is {', '.join(sorted(found.values()))}" if found else ", and no other"
            raise InvalidTopology(f"{file}: declares no pipeline {variable!r}{there}")
        return named
    declared = getattr(module, "pipeline", None)
    if isinstance(declared, Pipeline):
        return declared
    if not found:
        raise InvalidTopology(f"{file}: declares no pipeline; end it with `pipeline = Pipeline(...)`")
    if len(found) > 1:
        names = ", ".join(sorted(found.values()))
        raise InvalidTopology(
            f"{file}: declares several pipelines ({names}); call the one to use `pipeline`, "
            f"or name it: {file.name}:{min(found.values())}"
        )
    (name,) = found.values()
    pipeline: Pipeline = getattr(module, name)
    return pipeline
