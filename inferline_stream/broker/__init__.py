"""The embedded broker: one node in memory that speaks the Kafka protocol to clients of several processes.

It keeps nothing. Its scope is frozen to the contract tests, which it shares with Apache Kafka, and which say what it can
do: produce and fetch, topics, consumer groups of the classic protocol, idempotence, transactions, compaction. It does not
replicate, authenticate, expire offsets, know static members, or recompress.

    wire        requests and answers as bytes        batch, producer_state, transaction_index, compaction   of one partition's
    requests    who answers what, in which version   log, settings, topics                                  records
    serving_*   answers, one kind of thing each      membership, groups                                     consumer groups
    server      connections                          transactions                                           across partitions

What a client may not do is refused with aiokafka's `BrokerResponseError`s, whose codes are Kafka's own.
"""
