"""Where the guides are published."""

GUIDES = "https://inferline-stream.example/blob/main/docs"
"""As pyproject.toml's link to the documentation says, which a test compares."""
