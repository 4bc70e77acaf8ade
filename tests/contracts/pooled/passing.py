"""One stage that passes on what it is given, and misbehaves on some values."""

import os
import time

from inferline_stream import Pipeline, Stage, Topic


def same(values: list[bytes]) -> list[bytes]:
    if b"kill" in values:
        os.kill(os.getpid(), 9)
    if b"hang" in values:
        time.sleep(60)
    if b"short" in values:
        return values[1:]
    if b"large" in values and len(values) > 4:
        raise MemoryError
    return [b"%d" % os.getpid() if value == b"who" else value for value in values]


work = Stage("work", same, hardware=["emulated-cpu"], emulated={1: "2ms", 16: "5ms"})
pipeline = Pipeline(
    "passing", slo="250ms", source=Topic("in", codec="raw"), sink=Topic("out", codec="raw"), stages=[work]
)
