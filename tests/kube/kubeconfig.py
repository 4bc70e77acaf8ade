"""What leads to an API server, as a kubeconfig file holds it."""

from __future__ import annotations

from collections.abc import Mapping

from tests.kube.store import Json


def kubeconfig(cluster: Mapping[str, str], namespace: str, user: Mapping[str, str]) -> Json:
    """Return a kubeconfig of one cluster.

    Args:
        cluster: where the server is, and how it is verified.
        namespace: of everything that is asked.
        user: credentials; lightkube wants some even where nobody asks for them.
    """
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "clusters": [{"name": "test", "cluster": dict(cluster)}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test", "namespace": namespace}}],
        "users": [{"name": "test", "user": dict(user)}],
    }
