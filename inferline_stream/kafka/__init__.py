"""The one door to Kafka clients: connect, read, send, transactions, offsets, topics."""
