"""Stands in for a replica: its stage's name says how it behaves. SIGUSR1 is the end of its last batch."""

import json
import os
import signal
import socket
import sys
import time

channel = socket.socket(fileno=int(sys.argv[-1]))
spec = json.loads(channel.recv(65536))
if spec["stage"] == "broken":
    raise RuntimeError("the model file is missing")
if spec["stage"] == "loud":
    sys.exit("x" * 100_000)
if spec["stage"] == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if spec["stage"] == "telling":
    reported = {
        "replica": spec["replica"],
        "threads": os.environ["OMP_NUM_THREADS"],
        "cores": sorted(os.sched_getaffinity(0)),
        "session": os.getsid(0) == os.getpid(),
        "parent": os.getppid(),
    }
    sys.stdout.write(json.dumps(reported) + "\n")
signal.signal(signal.SIGUSR1, lambda *_: os._exit(0))
if spec["stage"] != "telling":
    sys.stdout.write("up\n")
sys.stdout.flush()
while spec["stage"] == "chatty":
    sys.stdout.write("chatter " * 128 + "\n")
    sys.stdout.flush()
    time.sleep(0.001)
while True:
    time.sleep(0.05)
