"""``python -m inferline_stream.dataplane.dispatcher [NAMES] CHANNEL``: a dispatcher; its spec is the first datagram."""

import logging
import os
import socket
import sys

from inferline_stream.dataplane.attachments import MAX_DATAGRAM_BYTES
from inferline_stream.dataplane.dispatcher.process import main
from inferline_stream.dataplane.specs import decode_dispatcher_spec

if __name__ == "__main__":
    *names, channel = (socket.socket(fileno=int(number)) for number in sys.argv[1:])
    code = main(channel, decode_dispatcher_spec(channel.recv(MAX_DATAGRAM_BYTES)), names[0] if names else None)
    logging.shutdown()
    os._exit(code)
