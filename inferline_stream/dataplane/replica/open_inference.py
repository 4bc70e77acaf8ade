"""Tensors of the Open Inference Protocol v2: of a batch's events, and as its JSON and its raw bytes lay them out.

| over             | what a request is                                                                         |
|------------------|-------------------------------------------------------------------------------------------|
| HTTP             | JSON                                                                                      |
| HTTP, ``binary`` | JSON without the tensors' values, which follow it as raw bytes: the binary data extension |
| gRPC             | see `open_inference_grpc`; tensors are the same raw bytes                                 |
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from inferline_stream.dataplane.replica.server_exchange import ServerAnswer, ServerRequest

DATATYPES = {
    **{f"INT{bits}": np.dtype(f"<i{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"UINT{bits}": np.dtype(f"<u{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"FP{bits}": np.dtype(f"<f{bits // 8}") for bits in (16, 32, 64)},
    "BOOL": np.dtype(bool),
}
"""numpy's type by the protocol's name; ``BYTES`` is a string."""

_NAMES = {dtype: name for name, dtype in DATATYPES.items()}
_HEADER_LENGTH = "Inference-Header-Content-Length"
_LENGTH = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input or output of a whole batch.

    Args:
        name: on the server.
        datatype: of `DATATYPES`, or ``BYTES``.
        shape: the batch's dimension first.
        values: an array of the shape; of ``BYTES`` the strings, row by row.
    """

    name: str
    datatype: str
    shape: Sequence[int]
    values: NDArray[Any] | Sequence[str | bytes]

    def raw(self) -> bytes:
        """Return the values as raw bytes: rows one after the other, strings with their length before them."""
        if isinstance(self.values, np.ndarray):
            return self.values.tobytes()
        encoded = (value.encode() if isinstance(value, str) else value for value in self.values)
        return b"".join(_LENGTH.pack(len(each)) + each for each in encoded)


def tensor_of_values(name: str, datatype: str, shape: Sequence[int], values: Any) -> Tensor:
    """Return a tensor of a flat or nested list of its values.

    Raises:
        ValueError: they are no such tensor.
    """
    if min(shape, default=0) < 0:
        raise ValueError(f"output {name!r} has the shape {list(shape)}")
    if values is None:  # numpy would make one value of nothing: NaN, or false
        raise ValueError(f"output {name!r} has no data")
    count = int(np.prod(shape))
    if datatype == "BYTES":
        flat = _flat(values, len(shape)) if isinstance(values, list) else []
        if len(flat) != count:
            raise ValueError(f"output {name!r} has {len(flat)} strings for the shape {list(shape)}")
        return Tensor(name, datatype, shape, flat)
    try:
        return Tensor(name, datatype, shape, np.asarray(values, dtype=_dtype(name, datatype)).reshape(shape))
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"output {name!r}: {error}") from None


def tensor_of_raw(name: str, datatype: str, shape: Sequence[int], raw: bytes | memoryview) -> Tensor:
    """Return a tensor of raw bytes. Strings are text where all of a tensor are UTF-8, else bytes.

    Raises:
        ValueError: they are no such tensor.
    """
    if datatype != "BYTES":
        array = np.frombuffer(raw, _dtype(name, datatype)) if len(raw) else np.empty(0, _dtype(name, datatype))
        return tensor_of_values(name, datatype, shape, array)
    strings, at = list[bytes](), 0
    while at < len(raw):
        begins = at + _LENGTH.size
        at = begins + _LENGTH.unpack_from(raw, at)[0] if begins <= len(raw) else len(raw) + 1
        if at > len(raw):
            raise ValueError(f"output {name!r} ends within a string")
        strings.append(bytes(raw[begins:at]))
    return tensor_of_values(name, datatype, shape, text_of(strings))


def text_of(strings: Sequence[bytes]) -> list[Any]:
    """Return text where all strings are UTF-8, else the strings."""
    try:
        return [each.decode() for each in strings]
    except UnicodeDecodeError:
        return list(strings)


def tensors_of_events(events: Sequence[Any]) -> list[Tensor]:
    """Return the tensors that hold the inputs of several events.

    Args:
        events: of each one its inputs by name.

    Raises:
        ValueError: events have other inputs, shapes or types than each other, or types that the protocol lacks.
    """
    for inputs in events:
        if not isinstance(inputs, Mapping):
            raise ValueError(f"request returned {type(inputs).__qualname__}; return a dict of inputs by name")
    names = list(events[0])
    for inputs in events:
        if inputs.keys() != events[0].keys():
            raise ValueError(f"an event has the inputs {sorted(inputs)}, another one {sorted(names)}")
    return [_input(name, [inputs[name] for inputs in events]) for name in names]


def _input(name: str, values: Sequence[Any]) -> Tensor:
    if isinstance(values[0], str | bytes):
        return Tensor(name, "BYTES", (len(values),), values)
    arrays = [np.asarray(value) for value in values]
    if all(array.dtype.kind in "US" for array in arrays):
        # As objects: numpy's own strings lose the zero bytes at their ends.
        strings = np.stack([np.asarray(value, dtype=object) for value in values])
        return Tensor(name, "BYTES", strings.shape, strings.ravel().tolist())
    stacked = np.stack(arrays)
    dtype = stacked.dtype.newbyteorder("<")
    if dtype not in _NAMES:
        raise ValueError(f"input {name!r} is of type {stacked.dtype}, which the protocol has no name for")
    return Tensor(name, _NAMES[dtype], stacked.shape, np.ascontiguousarray(stacked, dtype))


def outputs_of_events(tensors: Iterable[Tensor], events: int) -> list[dict[str, Any]]:
    """Return the outputs of each event by name.

    One number or string per event is no list of one, whether the server gives it the shape [n] or, as MLServer does,
    [n, 1].

    Raises:
        ValueError: there are none, or they are not for so many events.
    """
    found: list[dict[str, Any]] = [{} for _ in range(events)]
    for tensor in tensors:
        for own, value in zip(found, _by_event(tensor, events), strict=True):
            own[tensor.name] = value
    if not found[0]:
        raise ValueError("the response has no outputs")
    return found


def _by_event(tensor: Tensor, events: int) -> NDArray[Any] | Sequence[Any]:
    shape = tensor.shape[:1] if list(tensor.shape[1:]) == [1] else tensor.shape
    if not shape or shape[0] != events:
        raise ValueError(f"output {tensor.name!r} has the shape {list(shape)} for {events} events")
    if isinstance(tensor.values, np.ndarray):
        return tensor.values.reshape(shape)
    each = len(tensor.values) // events
    if len(shape) == 1:
        return tensor.values
    return [tensor.values[i * each : (i + 1) * each] for i in range(events)]


class _Output(msgspec.Struct):
    name: str
    shape: list[int]
    datatype: str
    data: Any = None
    parameters: dict[str, Any] | None = None


class _Response(msgspec.Struct):
    outputs: list[_Output]


_decode = msgspec.json.Decoder(_Response).decode


def encode_request(events: Sequence[Any], *, binary: bool = False) -> ServerRequest:
    """Return one request over HTTP for the inputs of several events.

    Args:
        events: of each one its inputs by name.
        binary: whether values follow as raw bytes, and those of the response may.

    Raises:
        ValueError: as `tensors_of_events`; or JSON has no place for bytes.
    """
    tensors = tensors_of_events(events)
    if not binary:
        return ServerRequest(
            msgspec.json.encode({"inputs": [_described(each) | {"data": _listed(each)} for each in tensors]})
        )
    raws = [each.raw() for each in tensors]
    inputs = [
        _described(each) | {"parameters": {"binary_data_size": len(raw)}}
        for each, raw in zip(tensors, raws, strict=True)
    ]
    header = msgspec.json.encode({"inputs": inputs, "parameters": {"binary_data_output": True}})
    headers = {"Content-Type": "application/octet-stream", _HEADER_LENGTH: str(len(header))}
    return ServerRequest(b"".join((header, *raws)), headers)


def _described(tensor: Tensor) -> dict[str, Any]:
    return {"name": tensor.name, "shape": list(tensor.shape), "datatype": tensor.datatype}


def _listed(tensor: Tensor) -> Sequence[Any]:
    if isinstance(tensor.values, np.ndarray):
        values: list[Any] = tensor.values.ravel().tolist()
        return values
    if any(isinstance(value, bytes) for value in tensor.values):
        raise ValueError(
            f"input {tensor.name!r} holds bytes, which JSON has no place for; write binary=True, if the server takes "
            "that, or return text, e.g. in base64"
        )
    return tensor.values


def decode_answer(answer: ServerAnswer, events: int) -> list[dict[str, Any]]:
    """Return the outputs of each event by name, of an answer in JSON, or in JSON and raw bytes.

    Raises:
        ValueError: it is no response, or not one for so many events.
    """
    content = memoryview(answer.content)
    length = answer.headers.get(_HEADER_LENGTH, "")
    if length and not (length.isdecimal() and int(length) <= len(content)):
        raise ValueError(f"{_HEADER_LENGTH} {length!r} of a response of {len(content)} bytes")
    at = int(length) if length else len(content)
    try:
        outputs = _decode(content[:at]).outputs
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ValueError(f"no response of the Open Inference Protocol ({error})") from None
    tensors = list[Tensor]()
    for output in outputs:
        size = (output.parameters or {}).get("binary_data_size")
        if size is None:
            tensors.append(tensor_of_values(output.name, output.datatype, output.shape, output.data))
            continue
        if not (isinstance(size, int) and 0 <= size <= len(content) - at):
            raise ValueError(f"output {output.name!r} has {size!r} of the {len(content) - at} bytes that are left")
        tensors.append(tensor_of_raw(output.name, output.datatype, output.shape, content[at : at + size]))
        at += size
    return outputs_of_events(tensors, events)


def _dtype(name: str, datatype: str) -> np.dtype[Any]:
    if datatype not in DATATYPES:
        raise ValueError(f"output {name!r} is of the unknown type {datatype!r}")
    return DATATYPES[datatype]


def _flat(data: list[Any], dimensions: int) -> list[Any]:
    """Return a tensor's values in one list: the protocol allows nested ones, too."""
    for _ in range(dimensions - 1):
        if not all(isinstance(each, list) for each in data):
            break
        data = [value for each in data for value in each]
    return data
