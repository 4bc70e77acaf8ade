"""Records: the dispatcher that moves them, the replica that runs a stage on them, and what they say to each other."""
