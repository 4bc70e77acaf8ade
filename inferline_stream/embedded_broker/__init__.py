"""The embedded broker: one node in memory that speaks the Kafka protocol to clients of several processes.

It keeps nothing. Its scope is frozen to the contract tests that it shares with Apache Kafka: produce and fetch, topics,
consumer groups of the classic protocol, idempotence, transactions, compaction. It does not replicate, authenticate,
recompress, expire offsets, or know static members.

- connections: `server` (who answers what, in which versions), `wire` (bytes), `*_requests` (the answers)
- one partition: `log` (with its producers), `record_batch`
- across partitions: `topics`, `topic_settings`, `groups` (with their members), `transactions`

What a client may not do is refused with aiokafka's `BrokerResponseError`s, whose codes are Kafka's own.
"""
