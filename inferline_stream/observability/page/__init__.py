"""The live page: one picture of the running pipeline in a browser, no build step, no outside request."""
