"""The domain as values: pipeline, stage, hardware, profile, plan, trace, and their validation. Pure."""
