"""What a hostile stage tries, as the beginning of a topology's text."""

from __future__ import annotations

import contextlib
import socket

KNOWN = b"everything it knows"

ATTACKS = """
import mmap, os, signal, socket, subprocess, threading
from pathlib import Path


def connect(port):
    with socket.create_connection(("127.0.0.1", int(port)), timeout=2) as opened:
        opened.send(b"everything it knows")


def fill(folder):
    for number in range(100):
        with open(f"{folder}/{number}", "wb") as file:
            file.write(bytes(1 << 20))


def flood(_):
    for _ in range(64):  # twice what its log may hold, whether or not printing into a full one fails
        print("x" * 65536, flush=True)


def threads(_):
    stop, started = threading.Event(), []
    try:
        while len(started) < 5000:
            started.append(threading.Thread(target=stop.wait, daemon=True))
            started[-1].start()
    finally:
        stop.set()


def allocate(_):
    kept = []
    while True:
        kept.append(bytearray(16 << 20))


def share(_):
    shared = mmap.mmap(-1, 400 << 20)  # no process's own, so no limit of processes counts it
    for at in range(0, len(shared), 4096):
        shared[at] = 1


ATTACKS = {
    "read": lambda path: Path(path).read_bytes(),
    "connect": connect,
    "shell": lambda command: subprocess.run(command, shell=True, check=True),
    "kill": lambda process: os.kill(int(process), signal.SIGKILL),
    "fork": lambda _: [os.fork() for _ in range(3)],
    "fill": fill,
    "flood": flood,
    "threads": threads,
    "allocate": allocate,
    "share": share,
}
"""


def heard(server: socket.socket) -> list[bytes]:
    """What clients have sent first. On a busy machine others may still look for one whose port this was before."""
    said = []
    while True:
        try:
            client, _ = server.accept()
        except BlockingIOError:
            return said
        with client, contextlib.suppress(OSError):
            client.settimeout(0.5)
            said.append(client.recv(64))
