"""Traffic envelope and scaling policy as one pure step."""
