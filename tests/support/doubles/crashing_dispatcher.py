"""A dispatcher that crashes at a certain value, as a parser in C may: run it with ``-m`` in a dispatcher's place."""

from __future__ import annotations

import ctypes
import runpy
import sys
import time
from collections.abc import Iterator
from typing import Any

from aiokafka.record.default_records import DefaultRecordBatch

from inferline_stream.dataplane.dispatcher import intake
from inferline_stream.kafka import fetched_batches

UNPACKED = b"ends it when it is unpacked"
TAKEN_IN = b"ends it when it is taken in"
STANDS_STILL = b"stands still until "
"""With seconds since the epoch behind it: as if the host were frozen until then."""

_size_bytes = intake._size_bytes


def crashing_parser(data: bytes) -> Iterator[Any]:
    """Return what aiokafka's parser finds in a batch, or crash."""
    for record in DefaultRecordBatch(data):
        if record.value == UNPACKED:
            ctypes.string_at(0)
        yield record


def crashing_size(key: bytes | None, value: bytes, headers: Any) -> int:
    """Return a record's size, or crash, or stand still."""
    if value == TAKEN_IN:
        ctypes.string_at(0)
    if value.startswith(STANDS_STILL):
        sys.stderr.write("stands still\n")
        time.sleep(max(0.0, float(value.removeprefix(STANDS_STILL)) - time.time()))
    return _size_bytes(key, value, headers)


if __name__ == "__main__":
    fetched_batches.DefaultRecordBatch = crashing_parser  # type: ignore[attr-defined]  # it has this name there, too
    intake._size_bytes = crashing_size
    runpy.run_module("inferline_stream.dataplane.dispatcher", run_name="__main__")
