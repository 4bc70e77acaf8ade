"""The dispatcher: the process that owns a stage's partitions, keeps its queue and feeds its replicas with batches."""
