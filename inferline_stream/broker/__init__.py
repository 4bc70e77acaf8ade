"""The embedded broker: in memory, speaks the Kafka protocol, keeps nothing."""
