"""Start and stop dispatchers and replicas."""
