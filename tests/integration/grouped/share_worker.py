"""A worker of `test_share_groups.py`: one record at a time of a share group, 50 ms each, acknowledged one by one."""

import signal
import sys
import time

from confluent_kafka import ShareConsumer

EACH_S = 0.05

if __name__ == "__main__":
    servers, topic, group = sys.argv[1:]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with ShareConsumer({"bootstrap.servers": servers, "group.id": group, "fetch.wait.max.ms": 20}) as consumer:
        consumer.subscribe([topic])
        while True:
            for record in consumer.poll(0.2):
                if record.error() is None:
                    time.sleep(EACH_S)
            consumer.commit_sync()
