"""In place of a Faust app's worker: reports 2 events in 0.5 busy seconds each 10 ms, until SIGTERM."""

import os
import sys
import time

fd, events = int(sys.argv[3]), 0
while True:
    events += 2
    os.write(fd, b'{"events": %d, "busy_s": %f}\n' % (events, events / 4))
    time.sleep(0.01)
