"""What several rooms of our own tests and benchmarks share."""
