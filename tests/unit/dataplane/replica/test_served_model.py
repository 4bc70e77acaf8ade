"""What a replica asks of a model server, and what it makes of the answers."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from inferline_stream.dataplane.replica.open_inference import decode_response, encode_request
from inferline_stream.dataplane.replica.served_model import EventRefused, ServedModel
from inferline_stream.errors import InvalidFile, ServerUnavailable
from inferline_stream.pipeline.model_server import ModelServer, OpenAI, OpenInference, RayServe
from tests.support.model_server import ModelServerDouble, closed, model_server


def number_of(event: int) -> dict[str, Any]:
    return {"number": event}


def doubled(outputs: dict[str, Any]) -> int:
    return int(outputs["doubled"])


def with_event(event: int, outputs: dict[str, Any]) -> tuple[int, int]:
    return event, int(outputs["doubled"])


def asked(event: int) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": str(event)}], "max_tokens": 4}


def said(answer: dict[str, Any]) -> int:
    return int(answer["choices"][0]["message"]["content"])


def oip(server: ModelServerDouble, **more: Any) -> ModelServer:
    return OpenInference(
        server.url, **{"model": "double", "request": number_of, "response": doubled, "timeout": "2s", **more}
    )


async def called(server: ModelServer, events: list[int], folder: str = ".") -> list[Any]:
    model = ServedModel(server, folder)
    try:
        return await model(events)
    finally:
        await closed(model)


async def test_a_batch_is_one_request_of_the_open_inference_protocol() -> None:
    async with model_server() as server:
        assert await called(oip(server), [1, 2, 3]) == [2, 4, 6]
        (request,) = server.requests
        assert request["inputs"] == [{"name": "number", "shape": [3], "datatype": "INT64", "data": [1, 2, 3]}]


async def test_a_response_function_may_take_the_event_too() -> None:
    async with model_server() as server:
        assert await called(oip(server, response=with_event), [1, 2]) == [(1, 2), (2, 4)]


async def test_an_event_is_one_request_of_openais_interface_with_the_model_named() -> None:
    async with model_server() as server:
        served = OpenAI(server.url, model="tiny", request=asked, response=said)
        assert await called(served, [21]) == [42]
        assert server.requests == [{"model": "tiny", "max_tokens": 4, "messages": [{"role": "user", "content": "21"}]}]


async def test_an_event_is_one_post_of_json_to_ray_serve() -> None:
    async with model_server() as server:
        assert await called(RayServe(f"{server.url}/double", request=number_of, response=doubled), [4]) == [8]


@pytest.mark.parametrize("behaves", ["500", "502", "504", "garbage", "half", "closes"])
async def test_what_may_pass_at_the_next_attempt_is_tried_again_and_then_given_back(behaves: str) -> None:
    async with model_server() as server:
        server.behaves = behaves
        with pytest.raises(ServerUnavailable, match=server.url):
            await called(oip(server, retries=2), [1])
        assert len(server.requests) == 3


async def test_an_attempt_that_passes_gives_the_results_of_the_batch() -> None:
    async with model_server() as server:
        server.behaves = "500"
        asyncio.get_running_loop().call_later(0.01, setattr, server, "behaves", "well")
        assert await called(oip(server, retries=5), [1]) == [2]


@pytest.mark.parametrize("behaves", ["429", "503", "401", "404"])
async def test_a_server_that_takes_no_request_gets_no_second_one_at_once(behaves: str) -> None:
    async with model_server() as server:
        server.behaves, server.retry_after = behaves, "7"
        with pytest.raises(ServerUnavailable, match=f"answers {behaves}.*as the test wants") as raised:
            await called(oip(server), [1])
        assert len(server.requests) == 1
        assert raised.value.wait_s == 7


async def test_a_server_that_is_away_or_does_not_answer_in_time_is_named_with_the_reason() -> None:
    async with model_server() as server:
        server.behaves = "slow"
        with pytest.raises(ServerUnavailable, match="no answer within its timeout of 50ms"):
            await called(oip(server, timeout="50ms"), [1])
    with pytest.raises(ServerUnavailable, match=rf"{server.url}/v2/models/double/infer cannot be reached: .*refused"):
        await called(oip(server), [1])


async def test_what_a_server_that_is_ready_refuses_is_the_events_fault_and_else_the_servers() -> None:
    async with model_server() as server:
        with pytest.raises(EventRefused, match="422"):
            await called(oip(server), [1, -1])
        server.ready = False
        with pytest.raises(ServerUnavailable, match="422"):
            await called(oip(server), [1, -1])


async def test_a_response_beyond_the_limit_is_not_read_to_its_end() -> None:
    async with model_server() as server:
        server.behaves = "large"
        with pytest.raises(EventRefused, match="more than 1000 bytes; raise max_response_bytes"):
            await called(oip(server, max_response_bytes=1000), [1])


async def test_connections_are_kept_and_a_token_comes_from_its_file(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret\n")
    async with model_server() as server:
        model = ServedModel(oip(server, token_file="token"), str(tmp_path))
        for number in range(3):
            assert await model([number]) == [2 * number]
        await closed(model)
        assert {headers["Authorization"] for headers in server.headers} == {"Bearer secret"}


async def test_a_token_that_is_renewed_is_taken_up_and_one_that_is_refused_is_reported(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("first")
    async with model_server() as server:
        server.token = "first"
        model = ServedModel(oip(server, token_file="token"), str(tmp_path))
        assert await model([1]) == [2]
        file.write_text("second\n")
        assert await model([2]) == [4], "the file is not looked at while the token is good"
        server.token = "second"
        assert await asyncio.gather(*(model([number]) for number in range(4))) == [[0], [2], [4], [6]]
        server.token = "third"
        with pytest.raises(ServerUnavailable, match=r"401 .*no such token.*; look at token_file"):
            await model([1])
        file.write_text("")
        with pytest.raises(ServerUnavailable, match=r"401 .*can no longer be used: token: needs one token.*else$"):
            await model([1])
        file.unlink()
        remedy = rf"can no longer be used: {file}: cannot be read .*Isolation\(reads=\['{tmp_path}'\]\)$"
        with pytest.raises(ServerUnavailable, match=rf"401 .*look at token_file, which {remedy}"):
            await model([1])
        file.write_text("fourth")
        with pytest.raises(ServerUnavailable, match=r"401 .*look at token_file$"):
            await model([1])
        await closed(model)
    file.write_text("")
    with pytest.raises(InvalidFile, match="token: needs one token on one line"):
        ServedModel(oip(server, token_file="token"), str(tmp_path))


async def test_a_redirect_is_not_followed_and_names_the_address() -> None:
    async with model_server() as server:
        server.behaves = "moved"
        with pytest.raises(ServerUnavailable, match=r"answers 307 and names https://elsewhere\.example/infer"):
            await called(oip(server), [1])
        assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("body", "said"),
    [("a question", "request returned str; return a dict"), ({"messages": [], "stream": True}, "leave 'stream' out")],
)
async def test_a_body_that_openais_interface_does_not_take_is_never_sent(body: Any, said: str) -> None:
    async with model_server() as server:
        with pytest.raises(ValueError, match=said):
            await called(OpenAI(server.url, model="tiny", request=lambda event: body, response=doubled), [1])
        assert not server.requests


async def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidFile, match="no-token: cannot be read"):
        ServedModel(oip(ModelServerDouble(1), token_file="no-token"), str(tmp_path))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listens:
        return int(listens.getsockname()[1])


async def test_a_server_that_comes_back_is_reached_by_the_same_client() -> None:
    server = ModelServerDouble(free_port())
    model = ServedModel(oip(server), ".")
    with pytest.raises(ServerUnavailable):
        await model([1])
    await server.start()
    assert await model([1]) == [2]
    await server.stop()
    await server.start()
    assert await model([2]) == [4]
    await closed(model)
    await server.stop()


@pytest.mark.parametrize(
    ("events", "inputs"),
    [
        ([{"x": 1.5}], [{"name": "x", "shape": [1], "datatype": "FP64", "data": [1.5]}]),
        (
            [{"x": np.array([1, 2], np.int32)}, {"x": np.array([3, 4], np.int32)}],
            [{"name": "x", "shape": [2, 2], "datatype": "INT32", "data": [1, 2, 3, 4]}],
        ),
        ([{"t": "a"}, {"t": "é"}], [{"name": "t", "shape": [2], "datatype": "BYTES", "data": ["a", "é"]}]),
        ([{"b": [True, False]}], [{"name": "b", "shape": [1, 2], "datatype": "BOOL", "data": [True, False]}]),
    ],
)
def test_inputs_of_events_are_stacked_into_tensors(events: list[dict[str, Any]], inputs: list[dict[str, Any]]) -> None:
    import json

    assert json.loads(encode_request(events)) == {"inputs": inputs}


@pytest.mark.parametrize("events", [[{"x": 1}, {"y": 1}], [{"x": [1]}, {"x": [1, 2]}], [{"x": 1j}], [{"x": b"1"}]])
def test_inputs_that_make_no_tensor_are_refused(events: list[dict[str, Any]]) -> None:
    with pytest.raises(ValueError, match=r"x|shape"):
        encode_request(events)


def test_inputs_without_names_are_refused() -> None:
    with pytest.raises(ValueError, match="request returned list; return a dict of inputs by name"):
        encode_request([[1, 2]])  # type: ignore[list-item]


def test_outputs_are_dealt_to_their_events() -> None:
    body = b"""{"model_name": "m", "outputs": [
        {"name": "y", "shape": [2, 2], "datatype": "FP32", "data": [1, 2, 3, 4]},
        {"name": "label", "shape": [2], "datatype": "BYTES", "data": ["a", "b"]}]}"""
    first, second = decode_response(body, 2)
    assert (first["y"].tolist(), first["label"]) == ([1.0, 2.0], "a")
    assert (second["y"].tolist(), second["label"]) == ([3.0, 4.0], "b")


def test_tensors_may_be_nested_lists() -> None:
    body = b"""{"outputs": [
        {"name": "y", "shape": [2, 2], "datatype": "FP32", "data": [[1, 2], [3, 4]]},
        {"name": "one", "shape": [2, 1], "datatype": "BYTES", "data": [["a"], ["b"]]},
        {"name": "two", "shape": [2, 2], "datatype": "BYTES", "data": [["a", "b"], ["c", "d"]]}]}"""
    first, second = decode_response(body, 2)
    assert (first["y"].tolist(), first["one"], first["two"]) == ([1.0, 2.0], "a", ["a", "b"])
    assert (second["y"].tolist(), second["one"], second["two"]) == ([3.0, 4.0], "b", ["c", "d"])


def test_one_value_per_event_is_itself_in_either_shape_that_servers_give_it() -> None:
    body = b"""{"outputs": [{"name": "y", "shape": [2, 1], "datatype": "INT64", "data": [3, 4]},
        {"name": "label", "shape": [2, 1], "datatype": "BYTES", "data": ["a", "b"]}]}"""
    assert decode_response(body, 2) == [{"y": 3, "label": "a"}, {"y": 4, "label": "b"}]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b'{"outputs": []}',
        b'{"outputs": [{"name": "y", "shape": [3], "datatype": "FP32", "data": [1, 2, 3]}]}',
        b'{"outputs": [{"name": "y", "shape": [2], "datatype": "FP32", "data": [1]}]}',
        b'{"outputs": [{"name": "y", "shape": [2], "datatype": "FP32", "data": ["a", "b"]}]}',
        b'{"outputs": [{"name": "y", "shape": [2, -1], "datatype": "FP32", "data": [1, 2]}]}',
        b'{"outputs": [{"name": "y", "shape": [2], "datatype": "COMPLEX", "data": [1, 2]}]}',
        b'{"outputs": [{"name": "y", "shape": [2], "datatype": "BYTES", "data": ["a"]}]}',
        b'{"outputs": [{"name": "y", "shape": [], "datatype": "FP32", "data": 1}]}',
    ],
)
def test_what_is_no_response_for_the_events_is_recognised(body: bytes) -> None:
    with pytest.raises(ValueError, match=r"output|response"):
        decode_response(body, 2)
