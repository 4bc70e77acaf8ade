"""What a hostile stage tries, as the beginning of a topology's text."""

from __future__ import annotations

import socket

ATTACKS = """
import _thread, mmap, os, signal, socket, subprocess, threading
from pathlib import Path

KNOWN = b"everything it knows"


def connect(port):
    with socket.create_connection(("127.0.0.1", int(port)), timeout=2) as opened:
        opened.send(KNOWN)


def fill(folder):
    for number in range(100):
        with open(f"{folder}/{number}", "wb") as file:
            file.write(bytes(1 << 20))


def flood(_):
    for _ in range(64):  # twice what its log may hold, whether or not printing into a full one fails
        print("x" * 65536, flush=True)


def threads(_):
    stop = threading.Event()
    try:
        for _ in range(5000):  # Thread.start waits for ever for one that has no memory left to begin with
            _thread.start_new_thread(stop.wait, ())
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
    """Return what each client has sent first, but for Kafka's: these may still look for a broker that had this port.

    Their requests begin with a size, whose first byte is 0.
    """
    said = []
    while True:
        try:
            client, _ = server.accept()
        except BlockingIOError:
            return [first for first in said if not first.startswith(b"\0")]
        with client:
            client.settimeout(0.5)
            try:
                said.append(client.recv(64))
            except OSError:
                said.append(b"")
