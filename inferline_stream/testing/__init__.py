"""Fakes and fixtures that users' tests may use too."""
