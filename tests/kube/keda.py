"""KEDA on a cluster of this machine: its own operator and metrics adapter, which `.ci/cluster` builds."""

from __future__ import annotations

import contextlib
import json
import os
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import yaml

from inferline_stream.testing.local_kafka import free_ports
from tests.kube.real_cluster import ControlPlane, binaries
from tests.kube.store import Json
from tests.support.certificates import certify

_START_S = 180.0
_METRICS = "/apis/external.metrics.k8s.io/v1beta1"


@contextlib.contextmanager
def keda(plane: ControlPlane, folder: Path) -> Iterator[None]:
    """Install it, start it, wait until the API server passes requests on to it, and stop it in the end.

    Args:
        plane: the cluster.
        folder: for its logs and certificates.
    """
    where = binaries()
    assert where is not None
    verified = ssl.create_default_context(cafile=str(plane.certificate))
    headers = {"Authorization": f"Bearer {plane.token}"}
    metrics, health, service, secure, own = free_ports(5)
    certificates = folder / "certificates"
    certificates.mkdir()
    for name, text in zip(("tls.key", "tls.crt"), certify(certificates, "localhost"), strict=True):
        (certificates / name).write_bytes(text)
    (certificates / "ca.crt").write_bytes((certificates / "tls.crt").read_bytes())
    (folder / "kubeconfig").write_text(json.dumps(plane.kubeconfig("keda")))
    environment = {
        **os.environ,
        "KUBECONFIG": str(folder / "kubeconfig"),
        "WATCH_NAMESPACE": "",
        "KEDA_CLUSTER_OBJECT_NAMESPACE": "keda",
    }
    kubeconfigs = [f"--{of}-kubeconfig={folder / 'kubeconfig'}" for of in ("lister", "authentication", "authorization")]
    with httpx2.Client(base_url=plane.url, verify=verified, headers=headers) as api, contextlib.ExitStack() as stack:

        def make(path: str, manifest: Json) -> None:
            answer = api.post(path, json=manifest)
            assert answer.is_success, answer.text

        def start(name: str, *options: str) -> None:
            log = stack.enter_context((folder / f"{name}.log").open("wb"))
            process = subprocess.Popen([where / name, *options], cwd=folder, env=environment, stdout=log, stderr=log)
            stack.callback(process.wait)
            stack.callback(process.kill)

        for file in sorted((where / "keda-crds").glob("*.yaml")):
            make("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", yaml.safe_load(file.read_text()))
        _until(lambda: api.get("/apis/keda.sh/v1alpha1").is_success, "KEDA's kinds are known", folder)
        make("/api/v1/namespaces", {"metadata": {"name": "keda"}})
        # The adapter is no pod: the API server finds it by a name.
        named = {"type": "ExternalName", "externalName": "localhost"}
        make("/api/v1/namespaces/keda/services", {"metadata": {"name": "keda-metrics-apiserver"}, "spec": named})
        asked = {"name": "keda-metrics-apiserver", "namespace": "keda", "port": secure}
        rank = {"groupPriorityMinimum": 100, "versionPriority": 100, "insecureSkipTLSVerify": True}
        spec = {"group": "external.metrics.k8s.io", "version": "v1beta1", "service": asked, **rank}
        registered = {"metadata": {"name": "v1beta1.external.metrics.k8s.io"}, "spec": spec}
        make("/apis/apiregistration.k8s.io/v1/apiservices", registered)
        start(
            "keda-operator",
            f"--metrics-bind-address=127.0.0.1:{metrics}",
            f"--health-probe-bind-address=127.0.0.1:{health}",
            f"--metrics-service-bind-address=127.0.0.1:{service}",
            f"--cert-dir={certificates}",
        )
        start(
            "keda-adapter",
            "--bind-address=127.0.0.1",
            f"--secure-port={secure}",
            f"--port={own}",
            f"--cert-dir={certificates}",
            f"--metrics-service-address=localhost:{service}",
            *kubeconfigs,
        )
        _until(lambda: api.get(_METRICS).is_success, "KEDA's metrics are served", folder)
        yield


def _until(holds: Callable[[], bool], what: str, logs: Path) -> None:
    until_s = time.monotonic() + _START_S
    while not holds():
        assert time.monotonic() < until_s, f"waited {_START_S:g} s until {what}; logs are in {logs}"
        time.sleep(0.2)
