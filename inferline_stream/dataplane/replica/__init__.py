"""The replica: a process that runs one stage's code on batches that its dispatcher sends. It has no Kafka client."""
