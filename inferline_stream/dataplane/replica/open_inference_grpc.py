"""Requests and answers of the Open Inference Protocol v2 as gRPC's messages, tensors as raw bytes.

The messages are declared here, by the numbers that the protocol gives their fields.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from google.protobuf.message import DecodeError, Message

from inferline_stream.dataplane.grpc_messages import message_types
from inferline_stream.dataplane.replica.open_inference import (
    Tensor,
    outputs_of_events,
    tensor_of_raw,
    tensor_of_values,
    tensors_of_events,
    text_of,
)
from inferline_stream.dataplane.replica.server_exchange import ServerAnswer, ServerRequest

SERVICE = "/inference.GRPCInferenceService"

_PACKAGE = "inference"
_TENSOR = (
    (1, "name", "string"),
    (2, "datatype", "string"),
    (3, "shape", "int64 []"),
    (5, "contents", "InferTensorContents"),
)
_FIELDS = {
    "ModelReadyRequest": ((1, "name", "string"), (2, "version", "string")),
    "ModelReadyResponse": ((1, "ready", "bool"),),
    "ModelInferRequest": (
        (1, "model_name", "string"),
        (2, "model_version", "string"),
        (5, "inputs", "InferTensor []"),
        (7, "raw_input_contents", "bytes []"),
    ),
    "ModelInferResponse": (
        (1, "model_name", "string"),
        (2, "model_version", "string"),
        (5, "outputs", "InferTensor []"),
        (6, "raw_output_contents", "bytes []"),
    ),
    "InferTensor": _TENSOR,
    "InferTensorContents": (
        (1, "bool_contents", "bool []"),
        (2, "int_contents", "int32 []"),
        (3, "int64_contents", "int64 []"),
        (4, "uint_contents", "uint32 []"),
        (5, "uint64_contents", "uint64 []"),
        (6, "fp32_contents", "float []"),
        (7, "fp64_contents", "double []"),
        (8, "bytes_contents", "bytes []"),
    ),
}
"""The fields that are used, as `message_types` takes them. The protocol calls its tensors
``InferInputTensor`` and ``InferOutputTensor``: they are alike, and no message carries its type's name."""

_CONTENTS = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


@cache
def _messages() -> dict[str, type[Message]]:
    return message_types(_PACKAGE, _FIELDS)


def _read(name: str, content: bytes) -> Any:
    message = _messages()[name]()
    try:
        message.ParseFromString(content)
    except DecodeError as error:
        raise ValueError(f"no {name} of the Open Inference Protocol ({error})") from None
    return message


def ready_request(model: str, version: str) -> bytes:
    """Return the question of whether a model is served."""
    content: bytes = _messages()["ModelReadyRequest"](name=model, version=version).SerializeToString()
    return content


def is_ready(content: bytes) -> bool:
    """Whether an answer to `ready_request` says yes.

    Raises:
        ValueError: it is none.
    """
    return bool(_read("ModelReadyResponse", content).ready)


def encode_request(events: Sequence[Any], model: str, version: str) -> ServerRequest:
    """Return one request for the inputs of several events, by name.

    Raises:
        ValueError: as `tensors_of_events`.
    """
    tensors = tensors_of_events(events)
    tensor = _messages()["InferTensor"]
    message = _messages()["ModelInferRequest"](
        model_name=model,
        model_version=version,
        inputs=[tensor(name=each.name, datatype=each.datatype, shape=each.shape) for each in tensors],
        raw_input_contents=[each.raw() for each in tensors],
    )
    return ServerRequest(message.SerializeToString())


def decode_answer(answer: ServerAnswer, events: int) -> list[dict[str, Any]]:
    """Return the outputs of each event by name.

    Raises:
        ValueError: it is no response, or not one for so many events.
    """
    response = _read("ModelInferResponse", answer.content)
    raws = response.raw_output_contents
    if not raws:
        return outputs_of_events(map(_of_contents, response.outputs), events)
    if len(raws) != len(response.outputs):
        raise ValueError(f"the response has {len(response.outputs)} outputs and the contents of {len(raws)}")
    tensors = [
        tensor_of_raw(each.name, each.datatype, each.shape, raw)
        for each, raw in zip(response.outputs, raws, strict=True)
    ]
    return outputs_of_events(tensors, events)


def _of_contents(output: Any) -> Tensor:
    """Return a tensor whose values are in the field of their type: servers answer so, too."""
    field = _CONTENTS.get(output.datatype, "")
    values = list(getattr(output.contents, field)) if field else []
    return tensor_of_values(output.name, output.datatype, output.shape, text_of(values) if "bytes" in field else values)
