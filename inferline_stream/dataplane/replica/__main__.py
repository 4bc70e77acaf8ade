"""``python -m inferline_stream.dataplane.replica [FD]``: a replica, with its channel's descriptor if it has one."""

import logging
import os
import socket
import sys

from inferline_stream.dataplane.replica.replica import main

if __name__ == "__main__":
    code = main(socket.socket(fileno=int(sys.argv[1])) if len(sys.argv) > 1 else None)
    logging.shutdown()
    sys.stdout.flush()
    os._exit(code)  # threads that the stage has started do not keep the process
