"""Sources: bring events into a topic."""
