"""`deploy --target kubernetes`: a pipeline's manifests, printed or applied."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import yaml

from inferline_stream.actuators.kubernetes.installation import (
    Installation,
    manifests,
    overcommitted,
)
from inferline_stream.actuators.kubernetes.manifests import Cluster
from inferline_stream.actuators.kubernetes.object_names import dns_label
from inferline_stream.cli.options import DeployOptions, Platform, Running
from inferline_stream.cli.output import print_json
from inferline_stream.cli.plan_steps import Declared, declared, profiled, profiling_options, with_stock
from inferline_stream.cli.platform import kubernetes_door, profiling_cluster
from inferline_stream.errors import InvalidInput, UsageError
from inferline_stream.isolation.confinement import dispatcher_confinement
from inferline_stream.observability.alert_rules import Target
from inferline_stream.pipeline.hardware import catalogue
from inferline_stream.profiler.machine import this_machine
from inferline_stream.profiler.profile_store import ProfileStore
from inferline_stream.profiler.profiling_options import Options, pairs_to_profile


def install(topology: Path, running: Running, wanted: DeployOptions, *, as_json: bool) -> None:
    """Render, and print or apply.

    Raises:
        UsageError: an option is missing, or the API server refuses.
        InvalidInput: a stage has no profile of the cluster, or a share of a GPU is none that nodes lend.
        Unreachable: the API server does not answer.
    """
    if not wanted.pods.image:
        raise UsageError("--target kubernetes needs --image: this package, the topology and what its stages import")
    what = declared(topology, running.bootstrap_servers, running.prefix)
    if not wanted.dry_run:
        asyncio.run(_apply(running, wanted, what, as_json=as_json))
        return
    _, found = _rendered(running, wanted, what, wanted.pods.namespace or "default")
    if as_json:
        print_json({"pipeline": what.pipeline.name, "manifests": found})
    else:
        yaml.safe_dump_all(found, sys.stdout, sort_keys=False)


async def _apply(running: Running, wanted: DeployOptions, what: Declared, *, as_json: bool) -> None:
    door = kubernetes_door()
    platform, servers = Platform(on="kubernetes", pods=wanted.pods), running.bootstrap_servers
    await profiled(what, profiling_options(platform, servers), servers, profiling_cluster(platform, servers))
    async with door.cluster_client() as client:
        namespace = wanted.pods.namespace or client.namespace
        of, found = _rendered(running, wanted, what, namespace)
        unknown = await door.install(client, found)
        everybody = await door.controllers(client, of.cluster.namespace)
    applied = sorted({manifest["kind"] for manifest in found} - {text.partition(":")[0] for text in unknown})
    kinds = catalogue(what.pipeline.hardware)
    stock = {name: kind.stock for name, kind in kinds.items() if kind.stock is not None}
    beyond = overcommitted(everybody, stock)
    if as_json:
        shared = {kind: {"stock": most, "shares": shares} for kind, (most, shares) in beyond.items()}
        where = {"pipeline": what.pipeline.name, "namespace": of.cluster.namespace}
        print_json({**where, "applied": applied, "left_out": unknown, "overcommitted": shared})
        return
    print(f"{what.pipeline.name}: applied to namespace {of.cluster.namespace}: {', '.join(applied)}")
    for text in unknown:
        print(f"left out: {text}")
    for kind, (most, shares) in beyond.items():
        each = ", ".join(f"{pipeline} {share}" for pipeline, share in sorted(shares.items()))
        print(f"overcommitted: {kind}: {each}, of {most} in stock; those that ask first have them")


def _rendered(
    running: Running, wanted: DeployOptions, what: Declared, namespace: str
) -> tuple[Installation, list[dict[str, Any]]]:
    pipeline, pods, stock = what.pipeline, wanted.pods, wanted.stock or ()
    account = wanted.service_account or dns_label(f"{pipeline.name}-pod")
    shared = with_stock(pipeline, stock)
    held = {name: kind.stock for name, kind in catalogue(shared.hardware).items() if kind.stock is not None}
    named = {share.partition("=")[0] for share in stock}
    ports = dispatcher_confinement(running.bootstrap_servers).ports
    cluster = Cluster(namespace, pods.image, pods.path, account, pods.secret, ports)
    of = Installation(
        target=Target(pipeline.name, pipeline.slo_s, pipeline.objective),
        stages=[stage.name for stage in pipeline.stages],
        topology=pods.path or str(what.file),
        cluster=cluster,
        bootstrap_servers=running.bootstrap_servers,
        profiles=_profiles(what),
        stock={name: most for name, most in held.items() if name in named},
        prefix=running.prefix,
        delivery=wanted.delivery,
        reserve=wanted.reserve,
    )
    return of, manifests(of)


def _profiles(what: Declared) -> dict[str, str]:
    """Return the profiles' files: a controller in a pod measures no stage.

    Raises:
        InvalidInput: one is missing.
    """
    pipeline, here = what.pipeline, this_machine()
    store = ProfileStore(pipeline, what.file.parent, what.events, here, platform="kubernetes")
    known = store.load()
    missing, notes = pairs_to_profile(pipeline, known, Options(elsewhere=True, platform="kubernetes"), here)
    if missing or known.paths is None:
        pairs = ", ".join(f"{stage.name} on {kind.name}" for stage, kind in missing) or "the paths of events"
        remedy = "run `inferline-stream profile --on kubernetes` first, or leave out a kind that the cluster has not"
        raise InvalidInput(f"{pipeline.declared}: no profile of {pairs}: {remedy}")
    for note in notes:
        sys.stderr.write(f"{note}\n")
    return store.files()
