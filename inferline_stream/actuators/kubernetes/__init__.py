"""Dispatchers and replicas as pods. `actuator` and `api_server` alone know lightkube; the rest are plain values."""
