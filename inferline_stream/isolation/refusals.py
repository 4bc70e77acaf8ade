"""Says, where a sandboxed stage is refused something, which line of its topology would grant it."""

from __future__ import annotations

import contextlib
import errno
import functools
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from inferline_stream.isolation.confinement import Confinement
from inferline_stream.pipeline.topology import is_asynchronous

_GRANTED = "what a stage needs beside its code is granted by the fields of Isolation"


class Refusals:
    """Explains refusals to one process, as notes on the errors that they cause.

    Args:
        confinement: the process's own.
    """

    def __init__(self, confinement: Confinement) -> None:
        self._confinement = confinement
        self._address: Any = None
        self._here = "."
        """The current folder, which a sealed process may not ask for."""
        with contextlib.suppress(OSError):
            self._here = os.getcwd()
        self.sealed = False
        """Whether the seal holds: from then on, what matters is not which file but that it is opened at all."""
        if confinement.isolation.sandboxed:
            sys.addaudithook(self._audit)  # errors of sockets do not tell the address

    def guarded(self, run: Callable[..., Any]) -> Callable[..., Any]:
        """A stage whose refusals are explained: the same function, or a class that builds and calls the same."""
        if not self._confinement.isolation.sandboxed:
            return run
        explained, asynchronous = self._explained, is_asynchronous(run)
        if not inspect.isclass(run):
            return functools.wraps(run)(self._explaining(run, asynchronous=asynchronous))

        class Guarded:
            def __init__(self) -> None:
                with explained():
                    self.stage = run()

            __call__ = self._explaining(lambda guarded, values: guarded.stage(values), asynchronous=asynchronous)

        Guarded.__qualname__ = run.__qualname__
        return Guarded

    def _explaining(self, call: Callable[..., Any], *, asynchronous: bool) -> Callable[..., Any]:
        def now(*given: Any) -> Any:
            with self._explained():
                return call(*given)

        async def later(*given: Any) -> Any:
            with self._explained():
                return await call(*given)

        return later if asynchronous else now

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            remedy = self.remedy(error)
            if remedy:
                error.add_note(remedy)
            raise

    def remedy(self, error: BaseException) -> str:
        """What would have been granted, and how; empty if the error is no refusal."""
        chain: list[BaseException] = []
        at: BaseException | None = error
        while at is not None and at not in chain:
            chain.append(at)
            at = at.__cause__ or at.__context__
        for cause in reversed(chain):
            found = self._of(cause)
            if found:
                return found
        return ""

    def _of(self, error: BaseException) -> str:
        if self.sealed and isinstance(error, ModuleNotFoundError):
            return (
                f"{error.name} is imported after the seal: import it at the top of the topology or where the stage is "
                f"built, or write {self._line(seal='imports')}"
            )
        if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM):
            if error.filename is not None:
                return self._of_file(os.fspath(error.filename))
            if error.errno == errno.EACCES and isinstance(self._address, tuple):
                port = self._address[1]
                return f"the stage may not connect to TCP port {port}: write {self._line(ports=[port])}"
            return f"the sandbox refuses it: {error.strerror}; {_GRANTED}"
        if "ermission denied" in str(error) or "not permitted" in str(error):
            return f"the sandbox refuses it; {_GRANTED}"
        return ""

    def _of_file(self, path: str | bytes | int) -> str:
        name = os.fsdecode(path) if not isinstance(path, int) else str(path)
        full = os.path.normpath(os.path.join(self._here, name))
        folder = Path(self._confinement.topology).parent
        short = str(Path(full).relative_to(folder)) if Path(full).is_relative_to(folder) else full
        if self.sealed:
            return (
                f"{short!r} is opened after the seal: open it where the stage is built, or write "
                f"{self._line(seal='imports', reads=[short])}"
            )
        kind = "writes" if self._readable(full) or not os.path.lexists(full) else "reads"
        return f"the stage may not {kind[:-1]} {short!r}: write {self._line(**{kind: [short]})}"

    def _line(self, **more: Any) -> str:
        """The declaration as it would have to be, with what it holds already left as it is."""
        isolation = self._confinement.isolation
        said = "".join(f", {name}={value!r}" for name, value in more.items())
        others = ", …" if isolation.reads or isolation.writes or isolation.ports else ""
        return f'isolation=Isolation("{isolation.level}"{said}{others})'

    @staticmethod
    def _readable(path: str) -> bool:
        try:
            os.close(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK))
        except OSError:
            return False
        return True

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "socket.connect":
            self._address = arguments[1]
