"""``python -m inferline_stream.dataplane.dispatcher [NAMES] CHANNEL``: a dispatcher."""

import logging
import os
import socket
import sys

from inferline_stream.dataplane.dispatcher.process import main

if __name__ == "__main__":
    *names, channel = (socket.socket(fileno=int(number)) for number in sys.argv[1:])
    code = main(channel, names[0] if names else None)
    logging.shutdown()
    os._exit(code)
