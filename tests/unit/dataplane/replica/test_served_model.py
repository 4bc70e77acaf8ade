"""What a replica asks of a model server, and what it makes of the answers."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from inferline_stream.dataplane.replica import open_inference_grpc, tensorflow_protocol
from inferline_stream.dataplane.replica.open_inference import decode_answer, encode_request
from inferline_stream.dataplane.replica.served_model import EventRefused, ServedModel
from inferline_stream.dataplane.replica.server_exchange import ServerAnswer
from inferline_stream.errors import InvalidFile, ServerUnavailable
from inferline_stream.pipeline.model_server import ModelServer, OpenAI, OpenInference, RayServe
from tests.support.certificates import certify
from tests.support.grpc_model_server import field, infer_request, infer_response
from tests.support.model_server import STATUS, ModelServerDouble, closed, model_server, model_server_process


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


def binary(server: ModelServerDouble, **more: Any) -> ModelServer:
    return oip(server, binary=True, **more)


def over_grpc(server: ModelServerDouble, **more: Any) -> ModelServer:
    return replace(oip(server, **more), url=server.grpc_url)


def tensorflow(server: ModelServerDouble, **more: Any) -> ModelServer:
    return replace(oip(server, **more), protocol="tensorflow")


Asks = Callable[..., ModelServer]
batching = pytest.mark.parametrize("asks", [oip, binary, over_grpc, tensorflow])
"""The protocols whose requests hold a batch."""


async def called(server: ModelServer, events: list[int], folder: str = ".") -> list[Any]:
    model = ServedModel(server, folder)
    try:
        return await model(events)
    finally:
        await closed(model)


@batching
async def test_a_batch_is_one_request_and_a_response_function_may_take_the_event_too(asks: Asks) -> None:
    async with model_server() as server:
        assert await called(asks(server, response=with_event), [1, 2, 300]) == [(1, 2), (2, 4), (300, 600)]
        (request,) = server.requests
    tensor = {"name": "number", "shape": [3], "datatype": "INT64"}
    if asks is tensorflow:
        assert request == {"instances": [{"number": 1}, {"number": 2}, {"number": 300}]}
    elif asks is binary:
        assert request == {"inputs": [tensor], "parameters": {"binary_data_output": True}}
    else:
        (sent,) = request["inputs"]
        assert sent | {"data": list(sent["data"])} == tensor | {"data": [1, 2, 300]}


async def test_an_event_is_one_request_of_openais_interface_with_the_model_named() -> None:
    async with model_server() as server:
        served = OpenAI(server.url, model="tiny", request=asked, response=said)
        assert await called(served, [21]) == [42]
        assert server.requests == [{"model": "tiny", "max_tokens": 4, "messages": [{"role": "user", "content": "21"}]}]


async def test_an_event_is_one_post_of_json_to_ray_serve() -> None:
    async with model_server() as server:
        assert await called(RayServe(f"{server.url}/double", request=number_of, response=doubled), [4]) == [8]


@pytest.mark.parametrize(
    ("asks", "behaves"),
    [
        *((oip, behaves) for behaves in ("500", "502", "504", "garbage", "half", "closes")),
        *((asks, behaves) for asks in (binary, over_grpc, tensorflow) for behaves in ("500", "garbage")),
    ],
)
async def test_what_may_pass_at_the_next_attempt_is_tried_again_and_then_given_back(asks: Asks, behaves: str) -> None:
    async with model_server() as server:
        server.behaves = behaves
        with pytest.raises(ServerUnavailable, match=asks(server).url) as raised:
            await called(asks(server, retries=2), [1])
        assert len(server.requests) == 3
        assert not raised.value.busy, "an event that always has it is blamed in the end"


async def test_a_server_that_dies_over_a_grpc_request_is_asked_again_and_may_blame_the_event() -> None:
    with model_server_process(takes_s=30.0) as server:
        served = OpenInference(server.grpc_url, model="double", request=number_of, response=doubled, retries=0)
        asyncio.get_running_loop().call_later(0.5, server.kill)
        with pytest.raises(ServerUnavailable, match="Socket closed") as raised:
            await called(served, [1])
    assert not raised.value.busy


async def test_an_attempt_that_passes_gives_the_results_of_the_batch() -> None:
    async with model_server() as server:
        server.behaves = "500"
        asyncio.get_running_loop().call_later(0.01, setattr, server, "behaves", "well")
        assert await called(oip(server, retries=5), [1]) == [2]


@pytest.mark.parametrize("behaves", ["429", "503", "401", "404"])
@pytest.mark.parametrize("asks", [oip, over_grpc])
async def test_a_server_that_takes_no_request_gets_no_second_one_at_once(asks: Asks, behaves: str) -> None:
    name = STATUS[behaves].name if asks is over_grpc else behaves
    async with model_server() as server:
        server.behaves, server.retry_after = behaves, "7"
        with pytest.raises(ServerUnavailable, match=f"answers {name}.*as the test wants") as raised:
            await called(asks(server), [1])
        assert len(server.requests) == 1
        assert raised.value.busy
        assert raised.value.wait_s == (0 if asks is over_grpc else 7)


@batching
async def test_a_server_that_is_away_or_does_not_answer_in_time_is_named_with_the_reason(asks: Asks) -> None:
    async with model_server() as server:
        server.behaves = "slow"
        with pytest.raises(ServerUnavailable, match="no answer within its timeout of 50ms"):
            await called(asks(server, timeout="50ms"), [1])
    away = asks(server)
    with pytest.raises(ServerUnavailable, match=rf"{away.url}.*/double.* cannot be reached: .*refused") as raised:
        await called(away, [1])
    assert raised.value.busy


@batching
async def test_what_a_server_that_is_ready_refuses_is_the_events_fault_and_else_the_servers(asks: Asks) -> None:
    status = {over_grpc: "INVALID_ARGUMENT negative", tensorflow: "400"}.get(asks, "422")
    async with model_server() as server:
        with pytest.raises(EventRefused, match=status):
            await called(asks(server), [1, -1])
        server.ready = False
        with pytest.raises(ServerUnavailable, match=status):
            await called(asks(server), [1, -1])


@batching
async def test_a_response_beyond_the_limit_is_not_read_to_its_end(asks: Asks) -> None:
    async with model_server() as server:
        server.behaves = "large"
        with pytest.raises(EventRefused, match="more than 1000 bytes; raise max_response_bytes"):
            await called(asks(server, max_response_bytes=1000), [1])


@pytest.mark.parametrize("asks", [oip, over_grpc])
async def test_connections_are_kept_and_a_token_comes_from_its_file(asks: Asks, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret\n")
    async with model_server() as server:
        model = ServedModel(asks(server, token_file="token"), str(tmp_path))
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


async def _result(model: ServedModel, number: int) -> list[Any] | None:
    try:
        return await model([number])
    except ServerUnavailable:
        return None


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listens:
        return int(listens.getsockname()[1])


@pytest.mark.parametrize("asks", [oip, over_grpc])
async def test_a_server_that_comes_back_is_reached_by_the_same_client(asks: Asks) -> None:
    server = ModelServerDouble(free_port())
    server.grpc.port = free_port()
    model = ServedModel(asks(server), ".")
    for number in (1, 2):
        with pytest.raises(ServerUnavailable):
            await model([number])
        await server.start()
        async with asyncio.timeout(30):
            while await _result(model, number) != [2 * number]:
                await asyncio.sleep(0.02)  # gRPC connects again within a second
        await server.stop()
    await server.start()
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
    assert json.loads(encode_request(events).content) == {"inputs": inputs}


@pytest.mark.parametrize(
    "events", [[{"x": 1}, {"y": 1}], [{"x": [1]}, {"x": [1, 2]}], [{"x": 1j}], [{"x": [1]}, {"x": ["a"]}]]
)
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
    first, second = decode_answer(ServerAnswer(200, "200", body), 2)
    assert (first["y"].tolist(), first["label"]) == ([1.0, 2.0], "a")
    assert (second["y"].tolist(), second["label"]) == ([3.0, 4.0], "b")


def test_tensors_may_be_nested_lists() -> None:
    body = b"""{"outputs": [
        {"name": "y", "shape": [2, 2], "datatype": "FP32", "data": [[1, 2], [3, 4]]},
        {"name": "one", "shape": [2, 1], "datatype": "BYTES", "data": [["a"], ["b"]]},
        {"name": "two", "shape": [2, 2], "datatype": "BYTES", "data": [["a", "b"], ["c", "d"]]}]}"""
    first, second = decode_answer(ServerAnswer(200, "200", body), 2)
    assert (first["y"].tolist(), first["one"], first["two"]) == ([1.0, 2.0], "a", ["a", "b"])
    assert (second["y"].tolist(), second["one"], second["two"]) == ([3.0, 4.0], "b", ["c", "d"])


def test_one_value_per_event_is_itself_in_either_shape_that_servers_give_it() -> None:
    body = b"""{"outputs": [{"name": "y", "shape": [2, 1], "datatype": "INT64", "data": [3, 4]},
        {"name": "label", "shape": [2, 1], "datatype": "BYTES", "data": ["a", "b"], "parameters": null}]}"""
    assert decode_answer(ServerAnswer(200, "200", body), 2) == [{"y": 3, "label": "a"}, {"y": 4, "label": "b"}]


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
        decode_answer(ServerAnswer(200, "200", body), 2)


@pytest.mark.parametrize("datatype", ["FP32", "BOOL", "BYTES"])
def test_an_output_without_data_is_no_result_of_a_single_event(datatype: str) -> None:
    body = b'{"outputs": [{"name": "y", "shape": [1], "datatype": "%s"}]}' % datatype.encode()
    with pytest.raises(ValueError, match="output 'y' has no"):
        decode_answer(ServerAnswer(200, "200", body), 1)


TEXTS = ["", "é", "a" * 300]


@pytest.mark.parametrize("texts", [TEXTS, [b"\xff\x00", b""]])
def test_strings_and_arrays_pass_as_raw_bytes_both_ways(texts: list[Any]) -> None:
    events = [{"t": text, "x": np.full((2, 3), number, ">f4")} for number, text in enumerate(texts)]
    as_bytes = [text if isinstance(text, bytes) else text.encode() for text in texts]
    array = {"name": "x", "shape": [len(texts), 2, 3], "datatype": "FP32"}
    request = infer_request(open_inference_grpc.encode_request(events, "double", "7").content)
    text_input = {"name": "t", "shape": [len(texts)], "datatype": "BYTES", "data": as_bytes}
    assert request["inputs"][1].pop("data").tolist() == np.repeat(np.arange(len(texts)), 6).tolist()
    assert request == {"model": "double", "version": "7", "inputs": [text_input, array]}

    sent = encode_request(events, binary=True)
    length = int(sent.headers["Inference-Header-Content-Length"])
    header = {"outputs": json.loads(sent.content[:length])["inputs"]}
    header_bytes = json.dumps(header).encode()
    headers = {"Inference-Header-Content-Length": str(len(header_bytes))}
    found = decode_answer(ServerAnswer(200, "200", header_bytes + sent.content[length:], headers), len(texts))
    assert [each["t"] for each in found] == texts
    assert [each["x"].tolist() for each in found] == [event["x"].tolist() for event in events]


def test_strings_in_lists_keep_the_zero_bytes_at_their_ends() -> None:
    events = [{"x": [[b"ab\0\0"], [b""]]}, {"x": [[b"\0"], [b"c"]]}]
    strings = [b"ab\0\0", b"", b"\0", b"c"]
    (found,) = infer_request(open_inference_grpc.encode_request(events, "m", "").content)["inputs"]
    assert found == {"name": "x", "shape": [2, 2, 1], "datatype": "BYTES", "data": strings}
    assert encode_request(events, binary=True).content.endswith(
        b"".join(len(each).to_bytes(4, "little") + each for each in strings)
    )


def test_bytes_have_no_place_in_json() -> None:
    with pytest.raises(ValueError, match=r"input 'x' holds bytes.*binary=True"):
        encode_request([{"x": b"1"}])


@pytest.mark.parametrize("typed", [True, False])
def test_servers_may_answer_over_grpc_in_the_field_of_the_type_or_raw(typed: bool) -> None:
    content = infer_response([{"name": "y", "shape": [2, 1], "datatype": "INT64", "data": [3, 1 << 40]}], typed=typed)
    found = open_inference_grpc.decode_answer(ServerAnswer(200, "OK", content), 2)
    assert found == [{"y": 3}, {"y": 1 << 40}]


def _raw_answer(size: Any, raw: bytes, length: str = "") -> ServerAnswer:
    output = {"name": "y", "shape": [2], "datatype": "BYTES", "parameters": {"binary_data_size": size}}
    header = json.dumps({"outputs": [output]}).encode()
    return ServerAnswer(200, "200", header + raw, {"Inference-Header-Content-Length": length or str(len(header))})


@pytest.mark.parametrize(
    "answer",
    [
        _raw_answer(4, b"\x01\0\0\0"),
        _raw_answer(3, b"\x01\0\0"),
        _raw_answer(5, b"\x01\0\0\0a"),
        _raw_answer(9, b"\x01\0\0\0a"),
        _raw_answer(-1, b"\x01\0\0\0a"),
        _raw_answer("5", b"\x01\0\0\0a"),
        _raw_answer(0, b"", "100000"),
        _raw_answer(0, b"", "-1"),
    ],
)
def test_raw_bytes_that_are_no_response_for_the_events_are_recognised(answer: ServerAnswer) -> None:
    with pytest.raises(ValueError, match=r"output 'y'|Inference-Header"):
        decode_answer(answer, 2)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 9,
        infer_response([{"name": "y", "shape": [3], "datatype": "INT64", "data": [1, 2, 3]}]),
        infer_response([{"name": "y", "shape": [2], "datatype": "INT64", "data": [1]}]),
        infer_response([{"name": "y", "shape": [2], "datatype": "FP32", "data": [1, 2]}], typed=True),
        infer_response([{"name": "y", "shape": [2], "datatype": "INT64", "data": [1, 2]}]) + field(6, b""),
    ],
)
def test_a_message_that_is_no_response_for_the_events_is_recognised(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"output|response|Protocol"):
        open_inference_grpc.decode_answer(ServerAnswer(200, "OK", content), 2)


def test_instances_of_tensorflow_serving_hold_arrays_as_lists_and_bytes_in_base64() -> None:
    events = [{"image": b"\xff", "mean": np.float32(0.5), "x": np.array([[1, 2]])}, {"image": np.array([b"a"])}]
    instances = [{"image": {"b64": "/w=="}, "mean": 0.5, "x": [[1, 2]]}, {"image": [{"b64": "YQ=="}]}]
    assert json.loads(tensorflow_protocol.encode_request(events).content) == {"instances": instances}
    answer = ServerAnswer(200, "200", b'{"predictions": [{"crops": [{"b64": "/w=="}], "b64": "text"}, 0.5]}')
    assert tensorflow_protocol.decode_answer(answer, 2) == [{"crops": [b"\xff"], "b64": "text"}, 0.5]
    with pytest.raises(ValueError, match="2 predictions for 3 instances"):
        tensorflow_protocol.decode_answer(answer, 3)
    with pytest.raises(ValueError, match="JSON has no place for"):
        tensorflow_protocol.encode_request([object()])


async def test_a_server_is_known_by_its_certificate_over_grpc(tmp_path: Path) -> None:
    certify(tmp_path, "other")
    server = ModelServerDouble()
    await server.grpc.start(grpc.ssl_server_credentials([certify(tmp_path, "own")]))
    served = replace(over_grpc(server, ca_file="own.pem", timeout="5s"), url=f"grpcs://localhost:{server.grpc.port}")
    assert await called(served, [1], str(tmp_path)) == [2]
    for other in (replace(served, ca_file="other.pem"), replace(served, url=f"grpcs://127.0.0.1:{server.grpc.port}")):
        with pytest.raises(ServerUnavailable, match="cannot be reached: "):
            await called(other, [1], str(tmp_path))
    await server.stop()
