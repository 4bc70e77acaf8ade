"""Dockerfile, compose file and what they mount: linted, valid by the Compose schema, and agreeing with each other."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import typer.main
import yaml

from inferline_stream.cli.main import app
from inferline_stream.pipeline.units import duration_s
from inferline_stream.settings import KAFKA_VERSION, from_environment

ROOT = Path(__file__).parents[2]
DOCKER, GUIDES = ROOT / "docker", ROOT / "docs/how-to"
COMPOSE: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text())
SCHEMA = json.loads((ROOT / "tests/contracts/schemas/compose-spec.json").read_text())
HADOLINT = str(Path(sys.executable).with_name("hadolint"))


def readme_dockerfile() -> str:
    """How users put their own code into an image."""
    (text,) = re.findall(r"^```dockerfile\n(.*?)^```", (GUIDES / "image.md").read_text(), re.MULTILINE | re.DOTALL)
    return text


def linted(dockerfile: str) -> str:
    done = subprocess.run(
        [HADOLINT, "--failure-threshold", "info", "--no-color", "-"], input=dockerfile, capture_output=True, text=True
    )
    return done.stdout if done.returncode else ""


def test_the_dockerfile_has_nothing_that_a_linter_would_say() -> None:
    assert linted((DOCKER / "Dockerfile").read_text()) == ""
    assert "DL3025" in linted("FROM a:1\nCMD shell form\n"), "the linter lints"


def test_what_users_write_to_get_their_code_in_is_linted_too_and_begins_at_a_stage_that_there_is() -> None:
    # DL3006: the image is the user's own, of whatever tag they have given it.
    assert set(re.findall(r"DL\d+", linted(readme_dockerfile()))) <= {"DL3006"}
    base = re.match(r"FROM inferline-stream:(\w+)", readme_dockerfile())
    assert base is not None
    assert f" AS {base[1]}\n" in (DOCKER / "Dockerfile").read_text()


def test_the_path_that_the_guides_name_is_where_their_dockerfile_has_put_the_topology() -> None:
    (put,) = re.findall(r"^COPY reviews (\S+)$", readme_dockerfile(), re.MULTILINE)
    text = "".join((GUIDES / page).read_text() for page in ("image.md", "kubernetes.md"))
    named = set(re.findall(r"--path\s(\S+)", text))
    assert {path.rstrip("`") for path in named} == {f"{put}/topology.py"}


def test_no_process_of_an_image_is_root_and_the_user_is_a_number() -> None:
    for text in ((DOCKER / "Dockerfile").read_text(), readme_dockerfile()):
        assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", re.findall(r"^USER (\S+)$", text, re.MULTILINE)[-1])


def test_bases_are_pinned_by_exact_versions_and_kafka_is_the_one_that_tests_run_on() -> None:
    text = (DOCKER / "Dockerfile").read_text()
    bases = re.findall(r"^ARG \w*BASE=\S+:(\S+)$", text, re.MULTILINE)
    assert [bool(re.match(r"\d+\.\d+\.\d+-", base)) for base in bases] == [True, True]
    images = {name: service["image"] for name, service in COMPOSE["services"].items() if "/" in service["image"]}
    assert all(re.search(r":v?\d+\.\d+\.\d+$", image) for image in images.values()), images
    assert images["kafka"].endswith(f":{KAFKA_VERSION}")
    assert f"BASE:-{re.findall(r'^ARG BASE=(.*)$', text, re.MULTILINE)[0]}" in (DOCKER / "compose.yaml").read_text()


def test_the_base_of_the_gpu_image_has_the_cuda_that_its_onnxruntime_requires() -> None:
    noted = re.search(
        r"onnxruntime-gpu (\S+) requires nvidia-cuda-runtime~=(\d+)", (DOCKER / "requirements-gpu.in").read_text()
    )
    assert noted is not None
    locked = re.findall(r"^onnxruntime-gpu==(\S+)", (DOCKER / "requirements-gpu.lock").read_text(), re.MULTILINE)
    dockerfile = (DOCKER / "Dockerfile").read_text()
    assert locked == [noted[1]], "what a newer wheel requires has to be looked up and noted"
    assert re.findall(r"^ARG CUDA_BASE=\S+/cuda:(\d+)", dockerfile, re.MULTILINE) == [noted[2]]
    for text in (dockerfile, (GUIDES / "image.md").read_text()):
        assert set(re.findall(r"with CUDA (\d+)|needs CUDA (\d+)", text)) <= {(noted[2], ""), ("", noted[2])}


def test_the_image_says_what_it_is_and_whether_it_is_well() -> None:
    text = (DOCKER / "Dockerfile").read_text()
    labels = set(re.findall(r"org\.opencontainers\.image\.(\w+)=", text))
    assert labels == {"title", "description", "licenses", "version"}
    (check,) = re.findall(r"^HEALTHCHECK .*\n +CMD (\[.*\])$", text, re.MULTILINE)
    program, _, code = json.loads(check)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        environment = {"INFERLINE_METRICS_PORT": str(closed.getsockname()[1])}
        asked = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert program == "python3"
    assert "Connection refused" in asked.stderr


def test_grafana_starts_with_no_password_that_others_know() -> None:
    environment = COMPOSE["services"]["grafana"]["environment"]
    assert environment["GF_SECURITY_ADMIN_PASSWORD"].startswith("${GRAFANA_PASSWORD:?")


def test_everything_that_the_dockerfile_copies_is_sent_to_the_builder_and_is_there() -> None:
    sent = re.findall(r"^!(\S+)$", (DOCKER / "Dockerfile.dockerignore").read_text(), re.MULTILINE)
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", (DOCKER / "Dockerfile").read_text(), re.MULTILINE)
    for name in " ".join(copied).split():
        assert (ROOT / name).exists()
        assert name in sent


def test_the_compose_file_is_valid_by_the_compose_specification() -> None:
    valid = jsonschema.Draft201909Validator(SCHEMA)
    valid.validate(COMPOSE)
    with pytest.raises(jsonschema.ValidationError, match="imagee"):
        valid.validate({"services": {"a": {"imagee": "b"}}})


def test_compose_mounts_files_that_exist_and_volumes_that_it_declares() -> None:
    for name, service in COMPOSE["services"].items():
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            assert source in COMPOSE["volumes"] or (DOCKER / source).exists(), f"{name} mounts {source}"


def test_compose_runs_ours_read_only_and_without_a_right() -> None:
    ours = {name for name, service in COMPOSE["services"].items() if service["image"] == "inferline-stream"}
    assert ours == {"pipeline", "rules"}
    for name in ours:
        service = COMPOSE["services"][name]
        assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])


def test_compose_sets_settings_that_there_are_and_arguments_that_the_command_takes() -> None:
    service = COMPOSE["services"]["pipeline"]
    assert from_environment(service["environment"]).connect_timeout_s == duration_s("60s")
    reported = typer.main.get_command(app).commands["run"]
    command = [
        part.replace("${TOPOLOGY:-topologies/moderation}", "topologies/moderation") for part in service["command"]
    ]
    context = reported.make_context("run", command[1:])
    assert context.params["bootstrap_servers"] == COMPOSE["services"]["kafka"]["environment"][
        "KAFKA_ADVERTISED_LISTENERS"
    ].removeprefix("PLAINTEXT://")
    assert (ROOT / context.params["topology"] / "topology.py").exists()


@pytest.mark.skipif(
    shutil.which("promtool") is None or shutil.which("amtool") is None,
    reason="apt-get install prometheus prometheus-alertmanager",
)
@pytest.mark.parametrize(
    "command",
    [
        ["promtool", "check", "config", "--syntax-only", "docker/prometheus.yml"],
        ["amtool", "check-config", "docker/alertmanager.yml"],
    ],
    ids=lambda command: command[0],
)
def test_what_monitoring_is_given_is_valid(command: list[str]) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_loads_the_rules_where_compose_puts_them_and_tells_alertmanager_where_it_listens() -> None:
    prometheus = yaml.safe_load((DOCKER / "prometheus.yml").read_text())
    services = COMPOSE["services"]
    (mounted,) = [v.split(":")[1] for v in services["prometheus"]["volumes"] if v.startswith("rules:")]
    assert prometheus["rule_files"] == [f"{mounted}/*.yml"]
    (target,) = prometheus["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"]
    assert f"--web.listen-address={target}" in services["alertmanager"]["command"]


@pytest.mark.engine
def test_the_image_builds_and_runs_with_a_read_only_root() -> None:
    engine = "docker" if shutil.which("docker") else "podman"
    build = [engine, "build", "-q", "-f", "docker/Dockerfile", "-t", "inferline-stream:test", "."]
    subprocess.run(build, cwd=ROOT, check=True, timeout=1800)
    run = [engine, "run", "--rm", "--read-only", "--tmpfs", "/tmp", "inferline-stream:test", "version"]
    done = subprocess.run(run, capture_output=True, text=True, timeout=120, check=True)
    assert re.match(r"inferline-stream \d", done.stdout)
