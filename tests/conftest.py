from hypothesis import settings

pytest_plugins = ["inferline_stream.testing.fixtures"]

# The same examples on every run, and no deadline: machines are noisy, and a test that fails must fail again.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")
