"""What everything that changes the number of a group's workers promises: a Deployment, a command, Faust, KEDA."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import grpc.aio
import pytest
from lightkube.resources.apps_v1 import Deployment

from inferline_stream.actuators.external_scaler import METRIC, ExternalScaler, KedaWorkers, messages
from inferline_stream.actuators.faust_workers import FaustWorkers
from inferline_stream.actuators.group_workers import CommandWorkers, GroupWorkers
from inferline_stream.actuators.kubernetes.deployment_scale import DeploymentWorkers
from inferline_stream.baselines.hpa import beyond_tolerance
from inferline_stream.errors import InferlineError, UsageError
from tests.kube.api import KubeApi, MakeApi, client_of
from tests.kube.exchanges import deployment
from tests.kube.real_cluster import binaries
from tests.support.certificates import certify

FOLDER = binaries()
"""What .ci/cluster has built, KEDA's own client among it."""

DEADLINE_S = 20.0


@dataclass
class Subject:
    """Workers, their number as seen from outside, and how to have the next change refused: with what text."""

    workers: GroupWorkers
    outside: Callable[[], Awaitable[int]]
    refuse: tuple[Callable[[], None], str] | None = None


Make = Callable[[AsyncExitStack, MakeApi, Path], Awaitable[Subject]]


async def on_kubernetes(stack: AsyncExitStack, make_api: MakeApi, folder: Path) -> Subject:
    api = await stack.enter_async_context(make_api())
    client = await stack.enter_async_context(client_of(api))
    made = deployment("enrich", api.namespace)
    name = made["metadata"]["name"]
    await client.create(cast("Deployment", Deployment.from_dict(made)), namespace=api.namespace)
    workers = DeploymentWorkers(client, f"{api.namespace}/{name}")

    async def outside() -> int:
        scale = await client.get(Deployment.Scale, name, namespace=api.namespace)
        return (scale.status.replicas if scale.status is not None else 0) or 0

    refused = (lambda: api.autoscaler(name)), "HorizontalPodAutoscaler"
    return Subject(workers, outside, refused if isinstance(api, KubeApi) else None)


async def by_command(stack: AsyncExitStack, make_api: MakeApi, folder: Path) -> Subject:
    script, said = folder / "scale.py", folder / "workers.txt"
    script.write_text(f"import sys; open({str(said)!r}, 'w').write(sys.argv[1].removeprefix('n='))")

    async def outside() -> int:
        return int(said.read_text())

    def refuse() -> None:
        script.write_text("import sys; print('no such service; $HOME'); sys.exit(9)")

    workers = CommandWorkers(f"{sys.executable} scale.py 'n={{replicas}}'", folder)
    return Subject(workers, outside, (refuse, "ended with 9: no such service; $HOME"))


async def of_faust(stack: AsyncExitStack, make_api: MakeApi, folder: Path) -> Subject:
    workers = FaustWorkers(
        "shop:app", folder, "g", "orders",
        logs=folder / "logs", data=folder / "data", stop_s=5.0, module="faust_worker_double",
    )  # fmt: skip
    await stack.enter_async_context(workers)

    async def outside() -> int:
        return workers.running

    return Subject(workers, outside)


async def by_keda(stack: AsyncExitStack, make_api: MakeApi, folder: Path) -> Subject:
    workers = KedaWorkers("enrich", 0.1)
    scaler = await stack.enter_async_context(ExternalScaler({"enrich": workers}, "127.0.0.1:0"))
    channel = await stack.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{scaler.port}"))

    async def outside() -> int:
        return (await asked(channel, "enrich"))[0]

    return Subject(workers, outside)


async def asked(channel: grpc.aio.Channel, group: str) -> tuple[int, bool]:
    """What KEDA asks at each of its looks: pods that its HorizontalPodAutoscaler would ask for, and whether active."""
    kinds, of = messages(), "/externalscaler.ExternalScaler/"
    ref = kinds["ScaledObjectRef"](
        name="any", namespace="ml", scalerMetadata=[kinds["Metadata"](key="group", value=group)]
    )

    async def call(method: str, request: object, answer: str) -> object:
        made = channel.unary_unary(
            of + method,
            request_serializer=lambda said: said.SerializeToString(),
            response_deserializer=kinds[answer].FromString,
        )
        return await made(request, timeout=DEADLINE_S)

    spec = (await call("GetMetricSpec", ref, "GetMetricSpecResponse")).metricSpecs[0]  # type: ignore[attr-defined]
    request = kinds["GetMetricsRequest"](scaledObjectRef=ref, metricName=spec.metricName)
    value = (await call("GetMetrics", request, "GetMetricsResponse")).metricValues[0]  # type: ignore[attr-defined]
    active = await call("IsActive", ref, "IsActiveResponse")
    assert value.metricName == spec.metricName
    return round(value.metricValueFloat / spec.targetSizeFloat), active.result  # type: ignore[attr-defined]


@pytest.fixture(params=[on_kubernetes, by_command, of_faust, by_keda], ids=lambda make: make.__name__)
async def subject(request: pytest.FixtureRequest, make_api: MakeApi, tmp_path: Path) -> AsyncIterator[Subject]:
    async with AsyncExitStack() as stack:
        yield await request.param(stack, make_api, tmp_path)


async def until(subject: Subject, workers: int) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while await subject.outside() != workers:
            await asyncio.sleep(0.01)


async def test_so_many_workers_run_as_were_asked_for_last(subject: Subject) -> None:
    for wanted in (2, 3, 1, 1, 2):
        await subject.workers.scale(wanted)
        await until(subject, wanted)
        assert await subject.workers.wanted() == wanted


@pytest.mark.parametrize("make", [on_kubernetes, by_command], ids=lambda make: make.__name__)
async def test_a_refusal_says_why_and_leaves_the_number_as_it_was(make: Make, tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        subject = await make(stack, KubeApi, tmp_path)
        assert subject.refuse is not None
        await subject.workers.scale(2)
        await until(subject, 2)
        refuse, why = subject.refuse
        refuse()
        with pytest.raises(InferlineError) as caught:
            await subject.workers.scale(5)
        assert why in str(caught.value)
        assert await subject.workers.wanted() == 2
        assert await subject.outside() == 2


@pytest.mark.parametrize(
    ("run", "why"),
    [("/nowhere/scale {replicas}", "cannot be run"), (f"{sys.executable} -c 'import time; time.sleep(60)'", "killed")],
)
async def test_a_command_that_cannot_run_or_does_not_end_is_an_error(run: str, why: str, tmp_path: Path) -> None:
    workers = CommandWorkers(run, tmp_path, limit_s=0.5)
    with pytest.raises(InferlineError, match=why):
        await workers.scale(2)
    assert await workers.wanted() is None


async def test_faust_workers_that_end_start_again_and_their_reports_give_the_throughput(tmp_path: Path) -> None:
    double = {"logs": tmp_path / "logs", "data": tmp_path / "data", "module": "faust_worker_double"}
    async with FaustWorkers("shop:app", tmp_path, "g", "orders", **double) as workers:  # type: ignore[arg-type]
        await workers.scale(2)
        async with asyncio.timeout(DEADLINE_S):
            while (found := workers.throughput()) is None or workers.running != 2:
                await asyncio.sleep(0.01)
        assert found.value == pytest.approx(4.0)  # of one worker, however many there are
        assert found.error == pytest.approx(0.0, abs=1e-6)
        process = workers._processes[0]
        process.kill()
        async with asyncio.timeout(DEADLINE_S):
            while workers._processes.get(0, process) is process:
                await asyncio.sleep(0.01)
    assert workers.running == 0


async def test_keda_falls_back_where_nothing_is_decided_or_the_group_is_unknown() -> None:
    workers = KedaWorkers("enrich", 0.1)
    async with (
        ExternalScaler({"enrich": workers}, "127.0.0.1:0") as scaler,
        grpc.aio.insecure_channel(f"127.0.0.1:{scaler.port}") as channel,
    ):
        for group, code in (("enrich", grpc.StatusCode.UNAVAILABLE), ("other", grpc.StatusCode.NOT_FOUND)):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await asked(channel, group)
            assert caught.value.code() is code
            assert group in (caught.value.details() or "")


if FOLDER is not None:

    async def test_kedas_own_client_gets_what_we_say() -> None:
        workers = KedaWorkers("enrich", 0.1)
        await workers.scale(7)
        async with ExternalScaler({"enrich": workers}, "127.0.0.1:0") as scaler:
            command = (FOLDER / "keda-client", f"127.0.0.1:{scaler.port}", "enrich")
            process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
            printed, _ = await process.communicate()
        assert process.returncode == 0
        said = json.loads(printed)
        assert said == {"active": True, "streamed": True, "metric": METRIC, "workers": 7, "whole": 7}


async def test_over_tls_both_sides_show_a_certificate(tmp_path: Path) -> None:
    (key, chain), (other_key, other_chain) = certify(tmp_path, "own"), certify(tmp_path, "other")
    workers, files = KedaWorkers("enrich", 0.1), (tmp_path / "own.pem", tmp_path / "own-key.pem")
    await workers.scale(3)
    async with ExternalScaler({"enrich": workers}, "localhost:0", files, tmp_path / "own.pem") as scaler:
        for shown, answers in (((key, chain), True), ((other_key, other_chain), False), ((None, None), False)):
            credentials = grpc.ssl_channel_credentials(chain, *shown)
            async with grpc.aio.secure_channel(f"localhost:{scaler.port}", credentials) as channel:
                if answers:
                    assert await asked(channel, "enrich") == (3, True)
                else:
                    with pytest.raises(grpc.aio.AioRpcError):
                        await asked(channel, "enrich")
    with pytest.raises(UsageError, match=r"missing\.pem"):
        await ExternalScaler({}, "localhost:0", (tmp_path / "missing.pem", files[1])).__aenter__()
    (tmp_path / "torn.pem").write_text("-----BEGIN CERTIFICATE-----\n")
    for torn, clients in (((tmp_path / "torn.pem", files[1]), None), (files, tmp_path / "torn.pem")):
        with pytest.raises(UsageError, match=r"torn\.pem.*no certificate"):
            await ExternalScaler({}, "localhost:0", torn, clients).__aenter__()


async def test_a_group_is_inactive_only_without_lag_and_streams_say_so_at_once() -> None:
    workers, kinds = KedaWorkers("enrich", 0.1), messages()
    async with (
        ExternalScaler({"enrich": workers}, "127.0.0.1:0") as scaler,
        grpc.aio.insecure_channel(f"127.0.0.1:{scaler.port}") as channel,
    ):
        ref = kinds["ScaledObjectRef"](scalerMetadata=[kinds["Metadata"](key="group", value="enrich")])
        stream = channel.unary_stream(
            "/externalscaler.ExternalScaler/StreamIsActive",
            request_serializer=lambda said: said.SerializeToString(),
            response_deserializer=kinds["IsActiveResponse"].FromString,
        )
        streams = [stream(ref, timeout=DEADLINE_S) for _ in range(2)]  # one process, many ScaledObjects
        for lag, wanted, active in ((None, 0, True), (0, 0, False), (7, 0, True), (0, 0, False), (0, 1, True)):
            workers.seen(lag=lag, members=0)
            await workers.scale(wanted)
            for each in streams:
                async with asyncio.timeout(DEADLINE_S):
                    while (await each.read()).result != active:
                        pass


def test_a_horizontal_pod_autoscaler_acts_on_what_is_asked_for() -> None:
    for tolerance in (0.0, 0.1, 0.2):
        for pods in range(1, 60):
            for wanted in range(1, 80):
                metric = beyond_tolerance(wanted, pods, tolerance)
                acts = abs(metric / pods - 1) > tolerance
                after = metric if acts else pods  # its rule, with a target of 1
                assert after >= wanted, (wanted, pods)
                assert after == wanted or abs(wanted / pods - 1) <= tolerance + 1e-9
                assert beyond_tolerance(wanted, after, tolerance) in (after, metric)  # it comes to rest
