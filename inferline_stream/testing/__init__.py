"""A Kafka for tests, ours and users: fixtures that start one, and processes that stand in for a dispatcher."""
