"""A Kafka for tests, ours and users: fixtures that start one."""
