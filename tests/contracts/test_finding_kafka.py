"""Which Kafka tests get: one that is given, one in a container, one on local Java; or none, and a word about it."""

import json
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingMixIn, UnixStreamServer

import pytest

from inferline_stream.errors import Unreachable
from inferline_stream.settings import KAFKA_VERSION, Surroundings, surroundings
from inferline_stream.testing import kafka, local_kafka
from inferline_stream.testing.kafka import KafkaAt, container_engine, find_apache_kafka
from inferline_stream.testing.local_kafka import formatted_folder, free_ports

DEADLINE_S = 60.0

CONTRACT = """

def test_contract(kafka):
    assert kafka.bootstrap_servers
"""

SHARING = """
import sys
from contextlib import contextmanager
from pathlib import Path
from inferline_stream.testing import kafka as sharing
from inferline_stream.testing.kafka import KafkaAt

folder = Path(sys.argv[1])
running = folder / "running"
wait_for_others = sharing._wait_for_others

@contextmanager
def started():
    print("started", flush=True)
    running.touch()
    yield KafkaAt("here:9092")
    running.unlink()
    print("stopped", flush=True)

def waits(*locks):
    print("waits", flush=True)
    wait_for_others(*locks)

sharing.find_apache_kafka, sharing._wait_for_others = started, waits
with sharing.shared_kafka(folder) as kafka:
    print(kafka.bootstrap_servers, flush=True)
    sys.stdin.read()
    print("running" if running.exists() else "gone", flush=True)
"""
"""A process that uses a shared Kafka until its input ends."""


@contextmanager
def user(folder):
    """A process that uses the Kafka of a folder; killed if it takes too long."""
    command = [sys.executable, "-c", SHARING, str(folder)]
    with ExitStack() as stack:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        late = threading.Timer(DEADLINE_S, process.kill)
        late.start()
        stack.callback(late.cancel)
        yield stack.enter_context(process)


def lines(process, count):
    return [process.stdout.readline().strip() for _ in range(count)]


def around(tmp_path, **found):
    nothing = {"kafka_bootstrap_servers": None, "container_engine": "unix:///nowhere", "cache": tmp_path, "ci": False}
    return Surroundings(**{**nothing, **found})


@pytest.fixture
def no_java(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))


def test_the_environment_says_what_there_is(tmp_path):
    said = {
        "KAFKA_BOOTSTRAP_SERVERS": "there:9092",
        "DOCKER_HOST": "unix:///engine",
        "INFERLINE_CACHE": str(tmp_path),
        "CI": "true",
        "KAFKA_VERSION": "4.0.0",
    }
    assert surroundings(said) == Surroundings("there:9092", "unix:///engine", tmp_path, True, "4.0.0")
    nothing = surroundings({"XDG_CACHE_HOME": "/caches", "CI": "false"})
    assert nothing == Surroundings(None, None, Path("/caches/inferline-stream"), False)


def test_a_kafka_that_is_given_comes_first(tmp_path, no_java):
    with find_apache_kafka(around(tmp_path, kafka_bootstrap_servers="there:9092")) as kafka:
        assert kafka.bootstrap_servers == "there:9092"


def test_processes_that_share_a_kafka_start_it_once_and_stop_it_when_the_last_has_left(tmp_path):
    with user(tmp_path) as first:
        assert lines(first, 2) == ["started", "here:9092"]
        with user(tmp_path) as second:
            assert lines(second, 1) == ["here:9092"]
            first.stdin.close()
            assert lines(first, 2) == ["running", "waits"]
            second.stdin.close()
            assert second.stdout.read() == "running\n"
        assert first.stdout.read() == "stopped\n"
    assert (first.returncode, second.returncode) == (0, 0)
    with user(tmp_path) as another:
        assert another.communicate()[0].split() == ["started", "here:9092", "running", "waits", "stopped"]


def test_where_the_process_that_started_a_shared_kafka_is_killed_the_next_one_starts_another(tmp_path):
    with user(tmp_path) as first:
        assert lines(first, 2) == ["started", "here:9092"]
        first.kill()
    with user(tmp_path) as another:
        assert another.communicate()[0].split() == ["started", "here:9092", "running", "waits", "stopped"]


def test_none_at_all_is_an_error_that_names_all_three(tmp_path, no_java):
    with (
        pytest.raises(Unreachable, match=r"KAFKA_BOOTSTRAP_SERVERS.*Docker or podman.*no Java"),
        find_apache_kafka(around(tmp_path)),
    ):
        pass


@pytest.mark.parametrize(("status", "answers"), [("200 OK", True), ("500 Internal Server Error", False)])
def test_a_container_engine_counts_only_if_it_answers(tmp_path, status, answers):
    path = tmp_path / "engine.sock"
    with socket.socket(socket.AF_UNIX) as engine:
        engine.bind(str(path))
        engine.listen()

        def answer():
            connection, _ = engine.accept()
            with connection:
                assert connection.recv(1000).startswith(b"GET /_ping")
                connection.sendall(f"HTTP/1.0 {status}\r\n\r\nOK".encode())

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        found = container_engine(around(tmp_path, container_engine=f"unix://{path}"))
        thread.join(DEADLINE_S)
    assert found == (f"unix://{path}" if answers else None)
    assert container_engine(around(tmp_path)) is None


class Engine:
    """A container engine's API on a socket, as far as running one container asks for it.

    Args:
        path: of the socket.
        runs: whether it has the image and runs containers: a broker's answer to ApiVersions comes from the port bound.
    """

    def __init__(self, path, *, runs):
        self.path, self.runs = path, runs
        self.asked, self.environment, self.image = [], {}, None
        self._brokers = ExitStack()

    def __enter__(self):
        engine = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def address_string(self):
                return "a unix socket"

            def log_message(self, *_):
                pass

            def answer(self):
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                status, document = engine.answer(self.command, self.path, json.loads(body or b"{}"))
                sent = b"" if document is None else json.dumps(document).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(sent)))
                self.end_headers()
                self.wfile.write(sent)

            do_GET = do_POST = do_DELETE = answer

        self._server = ThreadingUnixServer(str(self.path), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()
        self._brokers.close()

    def answer(self, verb, path, body):
        what = re.sub(r"^/v[0-9.]+", "", path.split("?")[0])
        self.asked.append((verb, what))
        match verb, what:
            case "GET", "/_ping":
                return 200, None
            case "GET", "/version":
                return 200, {"ApiVersion": "1.44", "MinAPIVersion": "1.24"}
            case "GET", "/networks":
                return 200, []
            case "GET", image if image.startswith("/images/"):
                return (200, {"Id": "i"}) if self.runs else (404, {"message": "no such image"})
            case "POST", "/containers/create" if self.runs:
                self.image = body["Image"]
                self.environment = dict(pair.split("=", 1) for pair in body["Env"])
                ((bound,),) = body["HostConfig"]["PortBindings"].values()
                self._listen(int(bound["HostPort"]))
                return 201, {"Id": "kafka-1", "Warnings": []}
            case "POST", "/containers/create":
                return 404, {"message": "no such image"}
            case "GET", "/containers/kafka-1/json":
                return 200, {"Id": "kafka-1", "Name": "/kafka", "Image": "i", "Config": {"Tty": False}, "State": {}}
            case ("POST", "/containers/kafka-1/start") | ("DELETE", "/containers/kafka-1"):
                return 204, None
        return 500, {"message": "pulling image: no route to the registry"}

    def _listen(self, port):
        listener = self._brokers.enter_context(socket.create_server(("127.0.0.1", port)))

        def serve():
            with suppress(OSError):
                while True:
                    with listener.accept()[0] as client:
                        client.sendall(struct.pack(">i", 4) + client.recv(100)[8:12])  # the correlation id

        threading.Thread(target=serve, daemon=True).start()


class ThreadingUnixServer(ThreadingMixIn, UnixStreamServer):
    daemon_threads = True


@pytest.fixture
def java_is_there(monkeypatch):
    """Local Kafka is possible; its address is given and nothing starts."""

    @contextmanager
    def local(**_):
        yield KafkaAt("local:9092")

    monkeypatch.setattr(kafka, "why_no_java", lambda *_: None)
    monkeypatch.setattr(kafka, "LocalKafka", local)


def test_an_engine_runs_kafka_s_image_on_the_port_that_is_advertised_and_removes_it(tmp_path, no_java):
    with Engine(tmp_path / "engine.sock", runs=True) as engine:
        where = surroundings({"DOCKER_HOST": f"unix://{engine.path}", "HOME": str(tmp_path), "KAFKA_VERSION": "4.1.1"})
        with find_apache_kafka(where) as found:
            assert ("DELETE", "/containers/kafka-1") not in engine.asked
        assert engine.image == "apache/kafka:4.1.1"
        assert engine.environment["KAFKA_ADVERTISED_LISTENERS"] == f"PLAINTEXT://{found.bootstrap_servers}"
        assert engine.environment["KAFKA_GROUP_INITIAL_REBALANCE_DELAY_MS"] == "0"
        assert engine.asked[-1] == ("DELETE", "/containers/kafka-1")


def test_an_image_that_cannot_be_pulled_is_reported_and_local_java_is_next(tmp_path, java_is_there, caplog):
    with Engine(tmp_path / "engine.sock", runs=False) as engine:
        where = around(tmp_path, container_engine=f"unix://{engine.path}")
        with find_apache_kafka(where) as found:
            assert found.bootstrap_servers == "local:9092"
        assert ("POST", "/images/create") in engine.asked
    (said,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert f"apache/kafka:{KAFKA_VERSION}" in said
    assert "no route to the registry" in said


def test_without_java_an_image_that_cannot_be_pulled_is_in_the_error(tmp_path, no_java):
    with (
        Engine(tmp_path / "engine.sock", runs=False) as engine,
        pytest.raises(Unreachable, match=r"KAFKA_BOOTSTRAP_SERVERS.*no route to the registry.*no Java"),
        find_apache_kafka(around(tmp_path, container_engine=f"unix://{engine.path}")),
    ):
        pass


def test_an_engine_without_the_package_testcontainers_is_reported_and_local_java_is_next(
    tmp_path, java_is_there, caplog, monkeypatch
):
    monkeypatch.setitem(sys.modules, "testcontainers.core.container", None)
    with Engine(tmp_path / "engine.sock", runs=True) as engine:
        with find_apache_kafka(around(tmp_path, container_engine=f"unix://{engine.path}")) as found:
            assert found.bootstrap_servers == "local:9092"
        assert engine.asked == [("GET", "/_ping")]
    assert "pip install 'inferline-stream[testing]'" in caplog.text


@pytest.mark.parametrize(
    ("shown", "lack"), [('openjdk version "17.0.1"', None), ('java version "1.8.0_401"', "is Java 1"), ("", "unknown")]
)
def test_java_must_be_recent(tmp_path, monkeypatch, shown, lack):
    for name, text in (("java", f"#!/bin/sh\necho '{shown}' >&2\n"), ("mvn", "#!/bin/sh\n")):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    said = local_kafka.why_no_java(tmp_path)
    assert said is None if lack is None else lack in said


def test_jars_are_downloaded_once_by_many_starters_and_appear_whole(tmp_path, monkeypatch):
    programs, cache = tmp_path / "programs", tmp_path / "cache"
    programs.mkdir()
    fake_maven = (
        "#!/bin/sh\n"
        f"echo run >> {tmp_path}/runs\n"
        'for argument; do case "$argument" in -DoutputDirectory=*) to="${argument#*=}";; esac; done\n'
        'mkdir "$to" && touch "$to/one.jar" && sleep 0.2 && touch "$to/two.jar"\n'
    )
    for name, text in (("mvn", fake_maven), ("java", "#!/bin/sh\necho 'openjdk version \"21.0.1\"' >&2\n")):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    with ThreadPoolExecutor(4) as starters:
        folders = list(
            starters.map(lambda _: sorted(jar.name for jar in local_kafka.kafka_jars(cache).iterdir()), range(4))
        )
    assert folders == [["one.jar", "two.jar"]] * 4
    assert (tmp_path / "runs").read_text() == "run\n"
    assert sorted(path.name for path in cache.iterdir()) == [
        f"kafka-{KAFKA_VERSION}",
        f"kafka-{KAFKA_VERSION}.lock",
    ]


def test_a_download_that_fails_leaves_nothing_and_says_why(tmp_path, monkeypatch):
    for name, text in (
        ("mvn", "#!/bin/sh\necho 'no network'\nexit 1\n"),
        ("java", "#!/bin/sh\necho 'version \"17\"' >&2\n"),
    ):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(Unreachable, match="no network"):
        local_kafka.kafka_jars(tmp_path / "cache")
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"]


def test_free_ports_are_free_distinct_and_outside_the_range_of_outgoing_connections():
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    ports = free_ports(5)
    assert len(set(ports)) == 5
    assert all(1024 < port < lowest for port in ports)
    for port in ports:
        socket.create_server(("127.0.0.1", port)).close()


@pytest.mark.parametrize("processes", ["0", "1"])  # pytest's own, and one of pytest-xdist
@pytest.mark.parametrize("ci", [True, False])
def test_without_apache_kafka_the_summary_says_so_and_ci_fails(tmp_path, ci, processes):
    (tmp_path / "test_contract.py").write_text(CONTRACT)
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["inferline_stream.testing.fixtures"]\n')
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "sh").symlink_to(shutil.which("sh"))
    environment = {
        "PATH": str(programs),
        "HOME": str(tmp_path),
        "DOCKER_HOST": "unix:///nowhere",
        "CI": str(ci).lower(),
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", processes, str(tmp_path)]
    done = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=2 * DEADLINE_S
    )
    assert "Contract tests ran on the embedded broker alone" in done.stdout
    assert ("1 passed, 1 error" if ci else "1 passed, 1 skipped") in done.stdout
    assert done.returncode == (1 if ci else 0)


def test_a_data_folder_that_was_kept_is_of_the_same_version_and_cluster(monkeypatch, tmp_path):
    kept = {formatted_folder(tmp_path / "kafka-4.1.1"), formatted_folder(tmp_path / "kafka-4.2.0")}
    monkeypatch.setattr(local_kafka, "CLUSTER_ID", "b3RoZXItY2x1c3Rlci1pZA")
    kept.add(formatted_folder(tmp_path / "kafka-4.1.1"))
    assert len(kept) == 3
