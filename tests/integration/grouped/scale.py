"""What `Command` runs in tests: ``scale.py NUMBER WORKER ARGUMENT...`` keeps so many of these workers."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

HERE = Path.cwd()
KNOWN = HERE / "pids.json"


def lives(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


wanted, script, args = int(sys.argv[1]), Path(__file__).parent / sys.argv[2], sys.argv[3:]
pids = [pid for pid in json.loads(KNOWN.read_text()) if lives(pid)] if KNOWN.exists() else []
for pid in pids[wanted:]:
    os.kill(pid, signal.SIGTERM)
del pids[wanted:]
with (HERE / "workers.log").open("ab") as log:
    while len(pids) < wanted:
        worker = [sys.executable, str(script), *args]
        pids.append(subprocess.Popen(worker, stdout=log, stderr=log, start_new_session=True).pid)
KNOWN.write_text(json.dumps(pids))
