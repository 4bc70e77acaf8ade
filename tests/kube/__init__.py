"""A Kubernetes API server and kubelet for tests: what manifests name runs as processes of this machine."""
