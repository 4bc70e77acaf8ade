"""Stands in for a replica: its stage's name says how it behaves. SIGUSR1 is the end of its last batch."""

import hashlib
import json
import os
import signal
import socket
import sys
import threading
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
if spec["stage"] == "busy":  # of the time that it might run, the share in which it did
    channel.send(b'{"type":"built"}')
    threading.Thread(target=lambda: [hashlib.sha256(bytes(1 << 20)) for _ in iter(int, 1)], daemon=True).start()
    time.sleep(0.2)
    began_s, began_cpu_s = time.perf_counter(), time.process_time()
    while time.perf_counter() < began_s + 1.0:
        pass
    took = (time.process_time() - began_cpu_s) / (time.perf_counter() - began_s)
    sys.stdout.write(json.dumps({"cores": took}) + "\n")
    sys.stdout.flush()
    time.sleep(60)
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
