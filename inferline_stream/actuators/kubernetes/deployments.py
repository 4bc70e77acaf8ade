"""A pipeline's Deployments in a cluster, and what the pods of each stage have in common: made, updated and scaled."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, cast

import msgspec
from lightkube import AsyncClient
from lightkube.resources.apps_v1 import Deployment

from inferline_stream.actuators.kubernetes import object_names
from inferline_stream.actuators.kubernetes.api_server import apply, passing, plain, secret_exists
from inferline_stream.actuators.kubernetes.deployment_scale import DeploymentScale
from inferline_stream.actuators.kubernetes.manifests import DISPATCHER_PORT, SPARE, Cluster, StageManifests
from inferline_stream.actuators.kubernetes.object_names import DISPATCHER, FIELD_MANAGER, REPLICA
from inferline_stream.actuators.network.credentials import new_credential
from inferline_stream.actuators.network.dispatcher_host import DispatcherHostSpec
from inferline_stream.dataplane.process_specs import ReplicaSpec
from inferline_stream.errors import UsageError
from inferline_stream.settings import HOST_SPEC


class Deployments:
    """One of dispatchers per stage, and one of replicas per stage and hardware kind.

    Raises what `AsyncClient` does; see `api_server.translated`. One call at a time.

    Args:
        pipeline: its name in the cluster.
        host: of every stage's dispatchers.
        cluster: where.
        client: to the API server.
    """

    def __init__(self, pipeline: str, host: DispatcherHostSpec, cluster: Cluster, client: AsyncClient) -> None:
        self._pipeline, self._host, self._cluster, self._client = pipeline, host, cluster, client
        self._specs: dict[tuple[str, str], ReplicaSpec] = {}
        self._applied: set[tuple[str, str]] = set()
        self._stops_first: set[tuple[str, str]] = set()
        self._addresses: dict[str, str] = {}
        """Of the dispatchers of stages whose common objects are there."""

    @property
    def stages(self) -> Collection[str]:
        """Stages that something was made of."""
        return self._addresses.keys()

    @property
    def applied(self) -> Mapping[tuple[str, str], ReplicaSpec]:
        """Templates of the replicas' Deployments that are up to date, by stage and hardware kind."""
        return {key: self._specs[key] for key in self._applied}

    def know(self, specs: Mapping[tuple[str, str], ReplicaSpec]) -> None:
        """Set the templates of replicas, by stage and hardware kind."""
        self._applied = {key for key in self._applied if specs.get(key) == self._specs[key]}
        self._stops_first &= self._applied  # the next update may find a place
        self._specs = dict(specs)

    def knows(self, stage: str, hardware: str) -> bool:
        """Whether there is a template."""
        return (stage, hardware) in self._specs

    def _manifests(self, stage: str) -> StageManifests:
        return StageManifests(self._pipeline, stage, self._cluster)

    def of_replicas(self, stage: str, hardware: str) -> str:
        """Return the name of a stage's Deployment of replicas."""
        return object_names.replicas_name(self._pipeline, stage, hardware)

    def of_dispatchers(self, stage: str) -> str:
        """Return the name of a stage's Deployment of dispatchers."""
        return object_names.dispatchers_name(self._pipeline, stage)

    async def apply_replicas(self, stage: str, hardware: str) -> None:
        """Make a Deployment, or bring it up to date; its number of replicas stays as it is, 0 for a new one."""
        if (stage, hardware) in self._applied:
            return
        name = self.of_replicas(stage, hardware)
        await self.scale(name).refuse_another_scaler()
        address = await self._address(stage)
        spec = self._specs[stage, hardware]
        of, first = self._manifests(stage), (stage, hardware) in self._stops_first
        wanted = of.replicas(spec, address, grace_s=self._host.drain_timeout_s, stops_first=first)
        if await self._found_own(name, wanted) is None:
            # Without a number, the API server would begin with one replica.
            new = {**wanted, "spec": {**wanted["spec"], "replicas": 0}}
            with passing(409):  # another controller was faster
                await self._client.create(cast("Deployment", Deployment.from_dict(new)), field_manager=FIELD_MANAGER)
        (made,) = await apply(self._client, [wanted])
        if (claims := of.claim_template(spec.hardware, made)) is not None:
            await apply(self._client, [claims])
        self._applied.add((stage, hardware))

    async def stop_first(self, stage: str, hardware: str) -> bool:
        """Have a Deployment end an older pod before it makes a newer one; return whether that is new to it."""
        if (stage, hardware) in self._stops_first or (stage, hardware) not in self._specs:
            return False
        self._stops_first.add((stage, hardware))
        self._applied.discard((stage, hardware))
        try:
            await self.apply_replicas(stage, hardware)
        except BaseException:
            self._stops_first.discard((stage, hardware))  # not done: the next look does it
            raise
        return True

    async def apply_dispatchers(self, stage: str, slots: int) -> None:
        """Make a Deployment, or bring it up to date, with a pod for each slot and the spare ones.

        Raises:
            UsageError: it belongs to something else.
        """
        wanted = self._manifests(stage).dispatchers(self._host)
        if stage not in self._addresses:  # before anything of the same names is made
            found = await self._found_own(self.of_dispatchers(stage), wanted)
            self._refuse_another_kafka(found)
        await self._address(stage)
        wanted["spec"]["replicas"] = slots + SPARE
        await apply(self._client, [wanted])

    async def _address(self, stage: str) -> str:
        """Make what a stage's pods have in common; returns ``host:port`` of its dispatchers."""
        if stage not in self._addresses:
            of, client = self._manifests(stage), self._client
            own = object_names.credential_name(self._pipeline, stage, REPLICA)  # made last: where it is, both are
            if not await secret_exists(client, own, self._cluster.namespace):
                await apply(client, of.credential_secrets(new_credential(f"{self._pipeline}/{stage}")))
            ports = {port for (of, _), spec in self._specs.items() if of == stage for port in spec.isolation.ports}
            await apply(client, of.network_policies(ports))
            await apply(client, of.disruption_budgets())
            (made,) = await apply(client, [of.service()])
            self._addresses[stage] = f"{made['spec']['clusterIP']}:{DISPATCHER_PORT}"
        return self._addresses[stage]

    async def exists(self, name: str) -> bool:
        """Whether there is a Deployment of that name."""
        return await self._found(name) is not None

    async def _found(self, name: str) -> dict[str, Any] | None:
        with passing(404):
            return plain(await self._client.get(Deployment, name, namespace=self._cluster.namespace))
        return None

    async def _found_own(self, name: str, wanted: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the Deployment of a name, if there is one.

        Raises:
            UsageError: it was made for something else, which would lose it.
        """
        found = await self._found(name)
        own, ours = (found or {}).get("metadata", {}).get("labels", {}), wanted["metadata"]["labels"]
        if found is not None and any(own.get(label) != value for label, value in ours.items()):
            said = (
                ", ".join(f"{label}={own[label]}" for label in ours if label in own) or "none of this pipeline's labels"
            )
            raise UsageError(
                f"Deployment {name!r} in namespace {self._cluster.namespace} was made for something else ({said}): "
                "choose another --prefix or --namespace"
            )
        return found

    def _refuse_another_kafka(self, dispatchers: dict[str, Any] | None) -> None:
        """Two runs of one name would undo each other's work; on one Kafka, only one of them leads.

        Raises:
            UsageError: the dispatchers that are there have another Kafka.
        """
        if dispatchers is None:
            return
        containers = dispatchers["spec"]["template"]["spec"]["containers"]
        own = (each.get("env", []) for each in containers if each["name"] == DISPATCHER)  # others were injected
        given = next((each.get("value") for each in next(own, []) if each["name"] == HOST_SPEC), None)
        theirs = msgspec.json.decode(given, type=_WithKafka).bootstrap_servers if given else ""
        if theirs and not _addresses(theirs) & _addresses(self._host.bootstrap_servers):
            raise UsageError(
                f"Deployment {dispatchers['metadata']['name']!r} in namespace {self._cluster.namespace} is of a run on "
                f"another Kafka, {theirs}: choose another --prefix or --namespace, or delete it if that run has ended"
            )

    def scale(self, name: str) -> DeploymentScale:
        """Return what reads and sets the number of a Deployment's pods."""
        return DeploymentScale(self._client, self._cluster.namespace, name)


class _WithKafka(msgspec.Struct):
    """What matters of a `DispatcherHostSpec` here; that of another release may differ in all else."""

    bootstrap_servers: str = ""


def _addresses(servers: str) -> set[str]:
    return {server.strip() for server in servers.split(",")}
