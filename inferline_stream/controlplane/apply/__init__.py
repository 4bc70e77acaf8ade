"""How a decision becomes replicas and dispatchers."""
