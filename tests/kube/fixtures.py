"""Kubernetes clusters as a fixture, for the conftest of a room."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import pytest

from tests.kube.api import KubeApi, MakeApi
from tests.kube.real_cluster import RealApi, binaries, control_plane


@pytest.fixture(scope="module", params=["fake", *(["real"] if binaries() else [])])
def make_api(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MakeApi]:
    """Makes a namespace of a Kubernetes cluster."""
    if request.param == "fake":
        yield KubeApi
    else:
        with control_plane(tmp_path_factory.mktemp("cluster")) as plane:
            yield functools.partial(RealApi, plane)
