"""What a topology may say of a model server."""

from __future__ import annotations

from typing import Any

import pytest

from inferline_stream.pipeline.annotations import types_of
from inferline_stream.pipeline.isolation import Isolation
from inferline_stream.pipeline.model_server import ModelServer, OpenAI, OpenInference, RayServe, TensorFlowServing
from inferline_stream.pipeline.topology import Stage
from tests.unit.pipeline.declaring import line, only_problem, problems


def asked(text: str) -> dict[str, Any]:
    return {"text": text}


def answered(outputs: dict[str, Any]) -> float:
    return float(outputs["score"])


def of_both(text: str, outputs: dict[str, Any]) -> float:
    return float(outputs["score"])


def of_three(text: str, outputs: dict[str, Any], more: int) -> float:
    return 0.0


async def later(text: str) -> dict[str, Any]:
    return {}


def server(**changes: Any) -> ModelServer:
    fields = {"url": "http://127.0.0.1:8000", "model": "m", "request": asked, "response": answered, **changes}
    return OpenInference(fields.pop("url"), **fields)


def served(**changes: Any) -> Stage:
    return Stage("rank", server=server(**changes), hardware=["cpu-1"])


@pytest.mark.parametrize("response", [answered, of_both])
def test_types_of_a_served_stage_are_those_of_its_two_functions(response: Any) -> None:
    types = types_of(served(response=response))
    assert (types.takes, types.returns) == (str, float)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"url": "127.0.0.1:8000"}, "is not an address; write e.g. http://127.0.0.1:8000"),
        ({"url": "ftp://127.0.0.1"}, "is not an address"),
        ({"url": "http://127.0.0.1:99999"}, "is not an address"),
        ({"model": ""}, "server has no model"),
        ({"timeout": "soon"}, "server timeout: "),
        ({"timeout": "0s"}, "server timeout '0s' must be above 0"),
        ({"retries": -1}, "server retries -1 must be a whole number, 0 or more"),
        ({"max_response_bytes": 0}, "server max_response_bytes 0 must be a whole number, 1 or more"),
        ({"url": "grpc://m:1/v2"}, "over gRPC, which has no path"),
        ({"url": "grpc://m:1", "path": "/x"}, "over gRPC, which has no path"),
        ({"url": "grpc://m:1", "binary": True}, "binary=True; leave it out: over gRPC tensors are raw bytes anyway"),
        ({"url": "grpcs://m:{port}", "command": "serve {port}"}, "its replica, which asks it over grpc:// alone"),
        ({"command": "serve"}, "need {port} each, for the port that is chosen"),
        (
            {"url": "https://127.0.0.1:{port}", "command": "serve {port}"},
            "server 'https://127.0.0.1:{port}' is started beside its replica, which asks it over http:// alone",
        ),
        ({"sleep": "/s", "wake": "/w"}, "is put to sleep by the replica that starts it with command="),
        (
            {"url": "http://127.0.0.1:{port}", "command": "serve {port}", "sleep": "/s"},
            "server needs both sleep='/s' and wake='', such as '/sleep' and '/wake_up'",
        ),
        ({"request": lambda text: text}, "is no function at the top of the file"),
        ({"request": later}, "later is asynchronous; write a plain function"),
        ({"response": of_three}, "of_three must take the outputs, or the event and the outputs"),
    ],
)
def test_what_cannot_be_asked_is_a_problem_with_its_remedy(changes: dict[str, Any], said: str) -> None:
    assert said in only_problem(line(None, server=server(**changes)))


def test_the_version_of_openais_interface_is_in_the_path_and_not_in_the_url_too() -> None:
    def asks(url: str, **more: Any) -> ModelServer:
        return OpenAI(url, model="m", request=asked, response=answered, **more)

    said = "server 'http://127.0.0.1:8000/v1/' ends with the /v1 that path '/v1/chat/completions' begins with"
    assert said in only_problem(line(None, server=asks("http://127.0.0.1:8000/v1/")))
    assert not problems(line(None, server=asks("http://127.0.0.1:8000/v1", path="/chat/completions")))
    assert not problems(line(None, server=asks("http://127.0.0.1:8000/tenant")))


def test_what_only_the_open_inference_protocol_has_is_no_others() -> None:
    def asks(url: str, **more: Any) -> ModelServer:
        return TensorFlowServing(url, model="m", request=asked, response=answered, **more)

    assert "is not an address" in only_problem(line(None, server=asks("grpc://127.0.0.1:8500")))
    assert "only OpenInference has tensors in raw bytes" in only_problem(
        line(None, server=asks("http://m", binary=True))
    )
    assert not problems(line(None, server=asks("http://m:8501")))


def test_a_stage_has_code_or_a_server() -> None:
    assert "has neither code nor a server" in only_problem(line(None))
    assert any("has code and a server" in problem for problem in problems(line(asked_of_batch, server=server())))
    assert "server 'http://x' is none" in "\n".join(problems(line(None, server="http://x")))


def asked_of_batch(texts: list[str]) -> list[str]:
    return texts


def test_a_server_that_replicas_start_cannot_be_started_by_a_sealed_one() -> None:
    started = server(url="http://127.0.0.1:{port}", command="serve {port}")
    assert "needs isolation='none'" in only_problem(line(None, server=started, isolation="sandbox"))
    assert not problems(line(None, server=started))
    forked = line(None, server=started, isolation=Isolation("none", forked=True))
    assert "leave isolation's forked=True out" in only_problem(forked)


def test_one_replica_asks_a_server_of_others_and_each_its_own() -> None:
    own = served(url="http://127.0.0.1:{port}", command="serve {port}")
    assert (served().most_replicas, own.most_replicas) == (1, None)
    assert (served().confined.ports, own.confined.ports) == ((8000,), ())
    for url in ("https://models", "grpcs://models"):
        assert Stage("a", server=server(url=url), hardware=["cpu-1"]).confined.ports == (443,)


def test_servers_that_take_an_event_at_a_time_get_batches_of_one() -> None:
    for each in (
        OpenAI("http://m:1", model="m", request=asked, response=answered),
        RayServe("http://m:1/x", request=asked, response=answered),
    ):
        assert Stage("a", server=each, hardware=["cpu-1"], max_batch_size=32).max_batch_size == 1
    assert served().most_at_once == 16


async def waits(texts: list[str]) -> list[str]:
    return texts


@pytest.mark.parametrize("concurrency", [0, -1, 1.5, True, "4"])
def test_a_concurrency_is_a_whole_number(concurrency: Any) -> None:
    assert f"concurrency {concurrency!r} must be a whole number, 1 to 100000" in only_problem(
        line(waits, concurrency=concurrency)
    )


def test_only_a_stage_that_waits_has_several_batches_at_once() -> None:
    assert "concurrency 2 needs `async def`" in only_problem(line(asked_of_batch, concurrency=2))
    assert not problems(line(asked_of_batch, concurrency=1))
    assert not problems(line(waits, concurrency=2))
