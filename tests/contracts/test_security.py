"""TLS and SASL on Apache Kafka: every client of the system, with the least rights that a pipeline needs."""

import asyncio
import base64
import json
import os
import re
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)

from inferline_stream.controlplane.pipeline_watch import watch_pipeline
from inferline_stream.dataplane.dead_letters import Letter, dead_letters, send_again
from inferline_stream.dataplane.kafka_permissions import ROLES, permissions
from inferline_stream.dataplane.topology_loader import load_topology
from inferline_stream.errors import Unreachable
from inferline_stream.kafka.pipeline_topics import WantedTopic, create_topics, topics_of
from inferline_stream.kafka.records import Record
from inferline_stream.kafka.writer import write_once
from inferline_stream.pipeline.names import Names
from inferline_stream.settings import from_environment
from inferline_stream.testing.local_kafka import HOST, LocalKafka
from tests.support.forked_command import forked_command

SECRET = "open sesame"  # with a space: a reader that splits a line at spaces fails
EVERY_RIGHT = AclBindingFilter(
    ResourceType.ANY, None, ResourcePatternType.ANY, None, None, AclOperation.ANY, AclPermissionType.ANY
)
OPERATIONS = {
    "Create": AclOperation.CREATE,
    "Delete": AclOperation.DELETE,
    "Describe": AclOperation.DESCRIBE,
    "DescribeConfigs": AclOperation.DESCRIBE_CONFIGS,
    "Read": AclOperation.READ,
    "Write": AclOperation.WRITE,
}
LOGIN = "org.apache.kafka.common.security"
USERS = ("alice", "bob", "carol")
MTLS = "client certificate"


class Secured:
    """A broker with TLS listeners, one for SASL and one for client certificates; nothing is allowed by default."""

    def __init__(self, kafka: LocalKafka, folder: Path) -> None:
        self.kafka = kafka
        self.folder = folder
        self.authority = folder / "broker-certificate.pem"
        self.bootstrap_servers = self.servers("SCRAM-SHA-256")

    def servers(self, mechanism: str) -> str:
        return f"{HOST}:{self.kafka.ports['SSL' if mechanism == MTLS else 'SASL_SSL']}"

    def environment(
        self, mechanism: str = "SCRAM-SHA-256", password: str = SECRET, user: str = "alice"
    ) -> dict[str, str]:
        named = {"SASL_MECHANISM": mechanism, "SASL_USERNAME": user, "SASL_PASSWORD": password}
        if mechanism == MTLS:
            files = {"CERTIFICATE": "certificate", "KEY": "key"}
            named = {f"SSL_{name}_LOCATION": str(self.folder / f"{user}-{file}.pem") for name, file in files.items()}
        named["SSL_CA_LOCATION"] = str(self.authority)
        return {f"INFERLINE_KAFKA_{name}": value for name, value in named.items()}


def certify(folder: Path, name: str, *more: str) -> None:
    """Make a key and a certificate; the broker's own signs the others."""
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
         "-days", "2", "-subj", f"/CN={name}", *more,
         "-keyout", str(folder / f"{name}-key.pem"), "-out", str(folder / f"{name}-certificate.pem")],
        check=True, capture_output=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    folder = tmp_path_factory.mktemp("certificates")
    key, certificate, both = folder / "broker-key.pem", folder / "broker-certificate.pem", folder / "broker.pem"
    certify(folder, "broker", "-addext", f"subjectAltName=IP:{HOST}")
    for user in USERS:
        certify(folder, user, "-CA", str(certificate), "-CAkey", str(key))
    both.write_text(key.read_text() + certificate.read_text())
    known = "".join(f' user_{user}="{SECRET}"' for user in USERS)
    listener = "listener.name.sasl_ssl."
    settings = {
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(both),
        "sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512,OAUTHBEARER",
        f"{listener}plain.sasl.jaas.config": f"{LOGIN}.plain.PlainLoginModule required{known};",
        f"{listener}scram-sha-256.sasl.jaas.config": f"{LOGIN}.scram.ScramLoginModule required;",
        f"{listener}scram-sha-512.sasl.jaas.config": f"{LOGIN}.scram.ScramLoginModule required;",
        f"{listener}oauthbearer.sasl.jaas.config": f"{LOGIN}.oauthbearer.OAuthBearerLoginModule required "
        'unsecuredLoginStringClaim_sub="broker";',
        # A connection lives no longer than this, nor than its token: clients have to come again with another one.
        f"{listener}oauthbearer.connections.max.reauth.ms": "3600000",
        "listener.name.ssl.ssl.client.auth": "required",
        "listener.name.ssl.ssl.truststore.type": "PEM",
        "listener.name.ssl.ssl.truststore.location": str(certificate),
        "ssl.principal.mapping.rules": "RULE:^CN=(.*)$/$1/",
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": "User:ANONYMOUS",  # clients of the listener without SASL
    }
    with LocalKafka(settings, listeners=["SASL_SSL", "SSL"]) as kafka:
        admin = AdminClient({"bootstrap.servers": kafka.bootstrap_servers})
        for mechanism in (ScramMechanism.SCRAM_SHA_256, ScramMechanism.SCRAM_SHA_512):
            credential = ScramCredentialInfo(mechanism, 4096)
            wanted = [UserScramCredentialUpsertion(user, credential, SECRET.encode()) for user in USERS]
            for done in admin.alter_user_scram_credentials(wanted).values():
                done.result(30)
        yield Secured(kafka, folder)


def grant(bootstrap_servers: str, topology: Path, prefix: str, users: Mapping[str, str], *verbs: str) -> None:
    """Grant users, by role, what `topics` prints; of the verbs alone, where some are given."""
    kinds = {
        "topic": ResourceType.TOPIC,
        "group": ResourceType.GROUP,
        "transactional-id": ResourceType.TRANSACTIONAL_ID,
    }
    wanted = [
        AclBinding(
            kinds[right.resource],
            right.name,
            ResourcePatternType.PREFIXED if right.prefixed else ResourcePatternType.LITERAL,
            f"User:{users[right.role]}",
            "*",
            OPERATIONS[operation],
            AclPermissionType.ALLOW,
        )
        for right in permissions(load_topology(topology), prefix)
        if right.role in users and (not verbs or right.needed_by in verbs)
        for operation in right.operations
    ]
    admin = AdminClient({"bootstrap.servers": bootstrap_servers})
    for granted in admin.create_acls(list(dict.fromkeys(wanted))).values():
        granted.result(30)
    deadline_s = time.monotonic() + 30
    while not set(wanted) <= set(admin.describe_acls(EVERY_RIGHT).result(30)):  # a broker follows its controller late
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


def run(topology: Path, *options: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    arguments = ["run", str(topology), "--no-ui", "--metrics-port", "0", "--output", "json", *options]
    return forked_command(*arguments, environment={**os.environ, **environment})


@pytest.fixture(scope="module")
def starter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("starter")
    forked_command("init", str(folder)).check_returncode()
    topology = folder / "topology.py"
    before, slo, after = topology.read_text().partition('slo="250ms"')
    assert slo
    topology.write_text(f'{before}slo="2s"{after}')  # rights are looked at here, and hops are slow on a busy machine
    return topology


async def writable(servers: str, topics: list[str]) -> set[str]:
    """Those of the topics that take a record from us."""
    found = set()
    for topic in topics:
        try:
            await write_once(servers, Record.keyed(topic, "key", None))
            found.add(topic)
        except Unreachable as error:
            if "TopicAuthorizationFailed" not in str(error):
                raise
    return found


@pytest.mark.parametrize(
    ("mechanisms", "delivery"),
    [
        ({"alice": "PLAIN", "bob": "SCRAM-SHA-512", "carol": "SCRAM-SHA-256"}, "exactly_once"),
        (dict.fromkeys(USERS, MTLS), "at_least_once"),
    ],
    ids=["passwords", "certificates"],
)
async def test_a_pipeline_runs_over_tls_with_the_rights_that_topics_prints_for_each_role(
    secured, starter, mechanisms, delivery, monkeypatch
):
    pipeline, prefix, servers = load_topology(starter), f"{delivery}.", secured.servers(mechanisms["alice"])
    await create_topics(secured.kafka.bootstrap_servers, topics_of(pipeline, prefix), replication=1)
    grant(
        secured.kafka.bootstrap_servers, starter, prefix, {"controller": "alice", "dispatcher": "bob"},
        "run", "run --replay", "profile", f"run --delivery {delivery}",
    )  # fmt: skip
    grant(secured.kafka.bootstrap_servers, starter, prefix, {"viewer": "carol", "operator": "carol"})
    of_dispatchers = {
        name.replace("INFERLINE_", "INFERLINE_DISPATCHER_"): value
        for name, value in secured.environment(mechanisms["bob"], user="bob").items()
    }
    done = await asyncio.to_thread(
        run, starter, "--bootstrap-servers", servers, "--prefix", prefix, "--no-create-topics",
        "--replay", "--duration", "3s", "--delivery", delivery,
        environment={**secured.environment(mechanisms["alice"], user="alice"), **of_dispatchers},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["lost"], report["duplicated"]) == (0, 0)
    assert report["events_in"] == report["events_out"] > 20
    assert SECRET not in done.stdout + done.stderr
    written = "".join(file.read_text() for file in starter.parent.glob(".inferline/**/*.log"))
    assert SECRET not in written

    def become(user: str) -> None:
        for name, value in secured.environment(mechanisms[user], user=user).items():
            monkeypatch.setenv(name, value)

    names = Names(pipeline.name, prefix)
    sink = names.topic(pipeline.sink.name)
    letters = names.dead_letters(names.topic(pipeline.source.name))
    theirs = [sink, names.control, names.decisions, names.assignments]
    become("alice")
    assert await writable(servers, theirs) == {names.decisions, names.assignments}
    become("bob")
    assert await writable(servers, theirs) == {sink}
    await write_once(servers, Record.keyed(letters, "key", b"a letter"))
    become("carol")
    assert await writable(servers, theirs) == {names.control}
    async with watch_pipeline(pipeline, servers, prefix, from_environment()) as observer:
        assert len((await observer.look(0.0)).stages) == len(pipeline.stages)
    assert [letter.value for letter in (await send_again(servers, pipeline, prefix)).sent] == [b"a letter"]


async def test_groups_are_led_and_looked_at_with_the_rights_that_topics_prints(secured, tmp_path):
    topology, prefix, own = tmp_path / "topology.py", "groups.", secured.kafka.bootstrap_servers
    topology.write_text(
        "from inferline_stream import Command, ConsumerGroup, Pipeline\n"
        'rank = ConsumerGroup("rank", group="rank-v1", topic="posts", workers=Command("true {replicas}"))\n'
        'pipeline = Pipeline("adopted", slo="5s", stages=[rank])\n'
    )
    pipeline = load_topology(topology)
    await create_topics(own, [*topics_of(pipeline, prefix), WantedTopic("posts", 2, "theirs")], replication=1)
    grant(own, topology, prefix, {"controller": "alice", "viewer": "carol", "operator": "carol"})
    where = "--bootstrap-servers", secured.bootstrap_servers, "--prefix", prefix
    done = await asyncio.to_thread(
        run, topology, *where, "--no-create-topics", "--duration", "3s", environment=secured.environment(user="alice")
    )
    assert done.returncode == 0, done.stderr
    for verb, code, said in (("pause", 0, ""), ("explain", 0, ""), ("status", 5, "`run` prints what it waits for")):
        environment = {**os.environ, **secured.environment(user="carol")}
        done = await asyncio.to_thread(forked_command, verb, str(topology), *where, environment=environment)
        assert (done.returncode, said in done.stderr) == (code, True), done.stderr


@pytest.mark.parametrize("whose", ["INFERLINE_KAFKA_SASL_PASSWORD", "INFERLINE_DISPATCHER_KAFKA_SASL_PASSWORD"])
def test_a_wrong_password_ends_a_run_with_code_5_and_says_whom_kafka_refuses(secured, starter, whose):
    environment = secured.environment(user="alice")
    for name, value in secured.environment(user="bob").items():
        environment[name.replace("INFERLINE_", "INFERLINE_DISPATCHER_")] = value
    environment[whose] = "shut sesame"
    done = run(starter, "--bootstrap-servers", secured.bootstrap_servers, environment=environment)
    assert done.returncode == 5, done.stderr
    user = "of the dispatchers: Kafka at .* refuses user 'bob'" if "DISPATCHER" in whose else "refuses user 'alice'"
    assert re.search(f"{user} with SCRAM-SHA-256", done.stderr)
    assert "sesame" not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


async def test_an_authority_that_did_not_sign_the_brokers_certificate_is_distinguished(secured, starter, monkeypatch):
    environment = secured.environment()
    del environment["INFERLINE_KAFKA_SSL_CA_LOCATION"]
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(Unreachable, match=r"certificate of Kafka at .* is not trusted: self-signed certificate"):
        await dead_letters(secured.bootstrap_servers, load_topology(starter))


async def visible(secured: Secured, starter: Path, prefix: str) -> list[Letter] | None:
    """Dead letters; None where the topics cannot be seen yet."""
    try:
        return await dead_letters(secured.bootstrap_servers, load_topology(starter), prefix)
    except Unreachable as error:
        if "has none of the topics" not in str(error):
            raise
        return None


@contextmanager
def token_endpoint(lasts_s: float, host: str) -> Iterator[tuple[dict[str, str], list[str]]]:
    """An OAuth 2.0 token endpoint; yields its settings, and every form that it is sent."""
    asked: list[str] = []

    class Endpoint(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
            claims = {"sub": "alice", "iat": time.time() - 1, "exp": time.time() + lasts_s}
            parts = [json.dumps(part).encode() for part in ({"alg": "none"}, claims)]
            token = ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in parts) + "."
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"access_token": token, "expires_in": lasts_s}).encode())

        def log_message(self, *message: object) -> None:
            pass

    with ThreadingHTTPServer((HOST, 0), Endpoint) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        settings = {
            "SASL_MECHANISM": "OAUTHBEARER",
            "SASL_OAUTHBEARER_TOKEN_ENDPOINT_URL": f"http://{host}:{server.server_port}/token",
            "SASL_OAUTHBEARER_CLIENT_ID": "alice",
            "SASL_OAUTHBEARER_CLIENT_SECRET": SECRET,
        }
        yield {f"INFERLINE_KAFKA_{name}": value for name, value in settings.items()}, asked
        server.shutdown()


async def test_tokens_of_an_oauth_endpoint_open_the_door(secured, starter, monkeypatch):
    prefix = "oauth."
    await create_topics(secured.kafka.bootstrap_servers, topics_of(load_topology(starter), prefix), replication=1)
    grant(secured.kafka.bootstrap_servers, starter, prefix, {"operator": "alice"}, "dlq")
    with token_endpoint(3600, HOST) as (environment, asked):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("INFERLINE_KAFKA_SSL_CA_LOCATION", str(secured.authority))
        async with asyncio.timeout(180):  # rights reach the broker a moment after the controller has them
            while await visible(secured, starter, prefix) is None:
                await asyncio.sleep(0.1)
        assert await visible(secured, starter, prefix) == []
    assert set(asked) == {"grant_type=client_credentials&client_id=alice&client_secret=open+sesame"}


async def test_a_run_outlives_many_tokens_of_an_endpoint_that_its_sealed_processes_know_by_name(secured, starter):
    prefix = "renewed."
    await create_topics(secured.kafka.bootstrap_servers, topics_of(load_topology(starter), prefix), replication=1)
    grant(secured.kafka.bootstrap_servers, starter, prefix, dict.fromkeys(ROLES, "alice"))
    patient = starter.parent / "patient.py"  # how fast this machine is, is not what is tested
    patient.write_text(starter.read_text().replace('slo="2s"', 'slo="20s"'))
    with token_endpoint(4, "localhost") as (environment, asked):
        done = await asyncio.to_thread(
            run, patient, "--bootstrap-servers", secured.bootstrap_servers, "--prefix", prefix, "--no-create-topics",
            "--replay", "--duration", "12s",
            environment={**environment, "INFERLINE_KAFKA_SSL_CA_LOCATION": str(secured.authority)},
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["lost"] == 0
    assert report["events_in"] == report["events_out"] > 20
    assert len(asked) > 20  # every client of every process came again
    assert SECRET not in done.stdout + done.stderr
