"""One run of a pipeline, from its start to its report."""
