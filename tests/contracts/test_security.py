"""TLS and SASL on Apache Kafka: every client of the system, with the least rights that a pipeline needs."""

import asyncio
import base64
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)

from inferline_stream.dataplane.dead_letters import Letter, dead_letters
from inferline_stream.dataplane.loading import load_topology
from inferline_stream.dataplane.permissions import permissions
from inferline_stream.dataplane.topics import create_topics, topics_of
from inferline_stream.errors import Unreachable
from inferline_stream.testing.local_kafka import HOST, LocalKafka

COMMAND = [sys.executable, "-c", "from inferline_stream.cli.main import app; app()"]
SECRET = "open sesame"  # with a space: whoever splits a line at spaces fails
OPERATIONS = {
    "Create": AclOperation.CREATE,
    "Delete": AclOperation.DELETE,
    "DescribeConfigs": AclOperation.DESCRIBE_CONFIGS,
    "Read": AclOperation.READ,
    "Write": AclOperation.WRITE,
}
LOGIN = "org.apache.kafka.common.security"


class Secured:
    """A broker with a TLS listener for PLAIN, SCRAM and OAUTHBEARER, where nothing is allowed by default."""

    def __init__(self, kafka: LocalKafka, authority: Path) -> None:
        self.kafka = kafka
        self.authority = authority
        self.bootstrap_servers = f"{HOST}:{kafka.ports['SASL_SSL']}"

    def environment(self, mechanism: str = "SCRAM-SHA-256", password: str = SECRET, **more: str) -> dict[str, str]:
        named = {"SASL_MECHANISM": mechanism, "SASL_USERNAME": "alice", "SASL_PASSWORD": password, **more}
        named["SSL_CA_LOCATION"] = str(self.authority)
        return {f"INFERLINE_KAFKA_{name}": value for name, value in named.items()}


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    folder = tmp_path_factory.mktemp("certificates")
    key, certificate, both = folder / "key.pem", folder / "certificate.pem", folder / "broker.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=broker",
         "-addext", f"subjectAltName=IP:{HOST}", "-keyout", str(key), "-out", str(certificate)],
        check=True, capture_output=True,
    )  # fmt: skip
    both.write_text(key.read_text() + certificate.read_text())
    listener = "listener.name.sasl_ssl."
    settings = {
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(both),
        "sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512,OAUTHBEARER",
        f"{listener}plain.sasl.jaas.config": f'{LOGIN}.plain.PlainLoginModule required user_alice="{SECRET}";',
        f"{listener}scram-sha-256.sasl.jaas.config": f"{LOGIN}.scram.ScramLoginModule required;",
        f"{listener}scram-sha-512.sasl.jaas.config": f"{LOGIN}.scram.ScramLoginModule required;",
        f"{listener}oauthbearer.sasl.jaas.config": f"{LOGIN}.oauthbearer.OAuthBearerLoginModule required "
        'unsecuredLoginStringClaim_sub="broker";',
        # A connection lives no longer than this, nor than its token: clients have to come again with another one.
        f"{listener}oauthbearer.connections.max.reauth.ms": "3600000",
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": "User:ANONYMOUS",  # whoever uses the listener without SASL
    }
    with LocalKafka(settings, listeners=["SASL_SSL"]) as kafka:
        admin = AdminClient({"bootstrap.servers": kafka.bootstrap_servers})
        for mechanism in (ScramMechanism.SCRAM_SHA_256, ScramMechanism.SCRAM_SHA_512):
            known = UserScramCredentialUpsertion("alice", ScramCredentialInfo(mechanism, 4096), SECRET.encode())
            admin.alter_user_scram_credentials([known])["alice"].result(30)
        yield Secured(kafka, certificate)


def grant(bootstrap_servers: str, topology: Path, prefix: str, *verbs: str) -> None:
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
            "User:alice",
            "*",
            OPERATIONS[operation],
            AclPermissionType.ALLOW,
        )
        for right in permissions(load_topology(topology), prefix)
        if right.needed_by in verbs
        for operation in right.operations
    ]
    admin = AdminClient({"bootstrap.servers": bootstrap_servers})
    for granted in admin.create_acls(wanted).values():
        granted.result(30)


def run(topology: Path, *options: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, "run", str(topology), "--no-ui", "--metrics-port", "0", "--output", "json", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env={**os.environ, **environment})


@pytest.fixture(scope="module")
def starter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("starter")
    subprocess.run([*COMMAND, "init", str(folder)], check=True, capture_output=True, timeout=60)
    return folder / "topology.py"


@pytest.mark.parametrize(("mechanism", "delivery"), [("SCRAM-SHA-512", "at_least_once"), ("PLAIN", "exactly_once")])
async def test_a_pipeline_runs_over_tls_with_the_rights_that_topics_prints(secured, starter, mechanism, delivery):
    prefix = f"{mechanism.lower()}."
    await create_topics(secured.kafka.bootstrap_servers, topics_of(load_topology(starter), prefix), replication=1)
    grant(secured.kafka.bootstrap_servers, starter, prefix, "run", "run --replay", "profile")
    done = await asyncio.to_thread(
        run, starter, "--bootstrap-servers", secured.bootstrap_servers, "--prefix", prefix, "--no-create-topics",
        "--replay", "--duration", "3s", "--delivery", delivery,
        environment=secured.environment(mechanism),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["lost"], report["duplicated"]) == (0, 0)
    assert report["events_in"] == report["events_out"] > 20
    assert SECRET not in done.stdout + done.stderr
    written = "".join(file.read_text() for file in starter.parent.glob(".inferline/**/*.log"))
    assert SECRET not in written


def test_a_wrong_password_ends_a_run_with_code_5_and_says_whom_kafka_refuses(secured, starter):
    wrong = secured.environment("SCRAM-SHA-256", password="shut sesame")
    done = run(starter, "--bootstrap-servers", secured.bootstrap_servers, environment=wrong)
    assert done.returncode == 5, done.stderr
    assert "refuses user 'alice' with SCRAM-SHA-256" in done.stderr
    assert "sesame" not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


async def test_an_authority_that_did_not_sign_the_brokers_certificate_is_told_apart(secured, starter, monkeypatch):
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

        def log_message(self, *told: object) -> None:
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
    grant(secured.kafka.bootstrap_servers, starter, prefix, "run", "dlq replay")
    with token_endpoint(3600, HOST) as (environment, asked):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("INFERLINE_KAFKA_SSL_CA_LOCATION", str(secured.authority))
        async with asyncio.timeout(60):  # rights reach the broker a moment after the controller has them
            while await visible(secured, starter, prefix) is None:
                await asyncio.sleep(0.1)
        assert await visible(secured, starter, prefix) == []
    assert set(asked) == {"grant_type=client_credentials&client_id=alice&client_secret=open+sesame"}


async def test_a_run_outlives_many_tokens_of_an_endpoint_that_its_sealed_processes_know_by_name(secured, starter):
    prefix = "renewed."
    await create_topics(secured.kafka.bootstrap_servers, topics_of(load_topology(starter), prefix), replication=1)
    grant(secured.kafka.bootstrap_servers, starter, prefix, "run", "run --replay", "profile")
    patient = starter.parent / "patient.py"  # how fast this machine is, is not what is tested
    patient.write_text(starter.read_text().replace('slo="250ms"', 'slo="20s"'))
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
