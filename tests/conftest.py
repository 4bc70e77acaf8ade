pytest_plugins = ["inferline_stream.testing.fixtures"]
