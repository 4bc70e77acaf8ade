"""A server that a replica starts ends with it, and so does all that the server has started."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from inferline_stream.dataplane.replica import server_process
from inferline_stream.dataplane.replica.http_transport import HttpTransport
from inferline_stream.dataplane.replica.server_process import ServerProcess
from inferline_stream.errors import StageFailed
from inferline_stream.pipeline.model_server import RayServe

SERVER = """
import http.server, os, signal, subprocess, sys, time
with open("main", "w") as file:
    file.write(str(os.getpid()))
helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"], start_new_session=True)
stray = os.fork()
if stray == 0:
    os.setsid()
    if os.fork() == 0:  # a daemon: its parent ends at once
        time.sleep(1000)
    os._exit(0)
os.waitpid(stray, 0)
if "gracefully" in sys.argv:
    signal.signal(signal.SIGTERM, lambda *_: (open("cleaned", "w").close(), os._exit(0)))
else:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), http.server.SimpleHTTPRequestHandler).serve_forever()
"""

REPLICA = """
import sys
from inferline_stream.dataplane.replica.server_process import ServerProcess
from tests.unit.dataplane.replica.test_server_process import lack
server = ServerProcess(sys.argv[1], sys.argv[2])
server.await_ready(lambda: lack(server))
print("ready", flush=True)
sys.stdin.read()
"""


def lack(server: ServerProcess) -> str:
    """What a server lacks that is asked over HTTP."""
    url = f"http://127.0.0.1:{server.port}/"
    asked = RayServe(url, request=str, response=str)
    return HttpTransport(asked, url, url, lambda content: True, None).lack("")


def below(folder: Path) -> list[int]:
    """Processes that run in a folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if os.readlink(process / "cwd") == str(folder):
                found.append(int(process.name))
        except OSError:
            continue
    return found


def until_none_is_left(folder: Path) -> None:
    until_s = time.monotonic() + 30.0
    while left := below(folder):
        assert time.monotonic() < until_s, f"processes {left} outlive their replica"
        time.sleep(0.02)


@pytest.mark.parametrize("how", ["gracefully", "stubborn"])
def test_whatever_ends_a_replica_its_server_and_all_that_it_started_end_with_it(tmp_path: Path, how: str) -> None:
    (tmp_path / "server.py").write_text(SERVER)
    command = f"{sys.executable} server.py {{port}} {how}"
    with subprocess.Popen(
        [sys.executable, "-c", REPLICA, command, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as replica:
        assert replica.stdout is not None
        assert replica.stdout.readline() == b"ready\n"
        assert len(below(tmp_path)) == 3
        replica.send_signal(signal.SIGKILL)
    until_none_is_left(tmp_path)
    assert (tmp_path / "cleaned").exists() == (how == "gracefully"), "a server is asked to end before it is killed"


def test_what_a_server_started_ends_with_the_server(tmp_path: Path) -> None:
    (tmp_path / "server.py").write_text(SERVER)
    server = ServerProcess(f"{sys.executable} server.py {{port}}", str(tmp_path))
    server.await_ready(lambda: lack(server))
    os.kill(int((tmp_path / "main").read_text()), signal.SIGKILL)
    until_none_is_left(tmp_path)
    while not server.ended():
        time.sleep(0.01)
    assert server.ended().endswith("ended with exit code 137")


def test_a_program_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(StageFailed, match=r"server './none' cannot be started: there is no such program"):
        ServerProcess("./none --port {port}", str(tmp_path))


def test_a_server_that_is_not_ready_for_long_is_logged_with_what_it_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(server_process, "_SILENT_S", 0.0)
    server = ServerProcess("sh -c 'sleep 1; exit 3'", str(tmp_path))
    with pytest.raises(StageFailed, match="server 'sh' ended with exit code 3"):
        server.await_ready(lambda: lack(server))
    first, *_ = caplog.messages
    assert re.fullmatch(r"server 'sh' is not ready after 0 s: http://127.0.0.1:\d+/ .*refused", first)
    assert len(caplog.messages) < 12, "at twice the time each"
