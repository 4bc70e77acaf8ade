"""A model behind a server of its own: what a stage asks for its results instead of computing them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

from inferline_stream.pipeline.units import duration_s, is_whole

Protocol = Literal["open_inference", "tensorflow", "openai", "http"]

GRPC_SCHEMES = ("grpc", "grpcs")
"""Of an address that is asked over gRPC, in the clear or over TLS."""

PORT = "{port}"
"""In a server's command and address: the port that it is started on."""

LONGEST_PAUSE_S = 1.0
"""Longest pause between two requests for the same batch."""

MAX_RESPONSE_BYTES = 16 * 1024 * 1024
"""Longest response taken by default."""


@dataclass(frozen=True, slots=True)
class ModelServer:
    """A server, and the two functions between events and it. Made by `OpenInference`,
    `TensorFlowServing`, `OpenAI` or `RayServe`.

    Args:
        protocol: how requests and responses are laid out.
        url: ``http://`` or ``https://``, host and port; a path before the protocol's own is kept. Of the Open Inference
            Protocol also ``grpc://`` or ``grpcs://``.
        request: a function of one event that returns what the server is asked.
        response: a function of the server's outputs for it, or of the event and the outputs, that returns the result.
        model: its name on the server.
        version: of the model; empty for the server's choice.
        path: of requests; empty for the protocol's own.
        timeout: longest that one request may take.
        retries: how often a request is sent again at once where its connection broke or its response was no good.
            Further attempts follow from the queue, however long the server is away.
        token_file: file with a bearer token, from the topology's folder where relative; read as the replica starts, and
            again where the server refuses the token (401, 403): one that has been renewed is taken up.
        ca_file: file with the certificates that the server's must be signed by; empty for the system's.
        max_response_bytes: longest response taken.
        binary: whether tensors follow the JSON as raw bytes: the Open Inference Protocol's binary data extension.
        command: starts the server, beside each replica and on its hardware, with ``{port}`` for the port; its url is
            then ``http://127.0.0.1:{port}``, with a path perhaps, or ``grpc://127.0.0.1:{port}``. Empty where somebody
            else runs the server: then one replica asks it, and the plan is made around what it serves.
        sleep: path and query to POST so that a server that ``command`` starts gives its device's memory back and keeps
            its process, such as vLLM's ``/sleep?level=1``; empty where it cannot.
        wake: path to POST so that it serves again, such as ``/wake_up``.
    """

    protocol: Protocol
    url: str
    request: Callable[[Any], Any]
    response: Callable[..., Any]
    model: str = ""
    version: str = ""
    path: str = ""
    timeout: str = "10s"
    retries: int = 2
    token_file: str = ""
    ca_file: str = ""
    max_response_bytes: int = MAX_RESPONSE_BYTES
    binary: bool = False
    command: str = ""
    sleep: str = ""
    wake: str = ""

    @property
    def batches(self) -> bool:
        """Whether a request may hold several events."""
        return self.protocol in ("open_inference", "tensorflow")

    @property
    def port(self) -> int:
        """TCP port that it is reached at; 0 where that is not known before it is started."""
        if self.command:
            return 0
        parts = urlsplit(self.url)
        return parts.port or {"https": 443, "grpcs": 443}.get(parts.scheme, 80)

    @property
    def budget_s(self) -> float:
        """Longest that a replica may take over a batch before it gives it back, its retries included."""
        return duration_s(self.timeout) * (1 + self.retries) + LONGEST_PAUSE_S * self.retries

    @property
    def files(self) -> tuple[str, ...]:
        """Files that a replica reads to connect."""
        return tuple(file for file in (self.token_file, self.ca_file) if file)

    def problems(self) -> Iterator[str]:
        """What is wrong with it, in words."""
        schemes = ("http", "https", *(GRPC_SCHEMES if self.protocol == "open_inference" else ()))
        try:
            parts = urlsplit(str(self.url).replace(PORT, "1"))
            known = parts.scheme in schemes and bool(parts.hostname) and bool(self.command or self.port > 0)
        except ValueError:
            known = False
        grpc = known and parts.scheme in GRPC_SCHEMES
        if self.command and not (PORT in self.command and PORT in self.url):
            yield f"server command {self.command!r} and url {self.url!r} need {PORT} each, for the port that is chosen"
        elif not known:
            yield f"server {self.url!r} is not an address; write e.g. http://127.0.0.1:8000"
        elif self.command and parts.scheme not in ("http", "grpc"):
            yield (
                f"server {self.url!r} is started beside its replica, which asks it over "
                f"{'grpc' if grpc else 'http'}:// alone"
            )
        elif grpc and (parts.path.strip("/") or self.path):
            yield f"server {self.url!r} is asked over gRPC, which has no path; leave it out"
        elif self.protocol == "openai" and parts.path.rstrip("/").endswith("/v1") and self.path.startswith("/v1/"):
            yield f"server {self.url!r} ends with the /v1 that path {self.path!r} begins with; leave it out of the url"
        if self.binary and (grpc or self.protocol != "open_inference"):
            over = "over gRPC tensors are raw bytes anyway" if grpc else "only OpenInference has tensors in raw bytes"
            yield f"server has binary=True; leave it out: {over}"
        if (self.sleep or self.wake) and not (known and parts.scheme == "http" and self.command):
            yield (
                f"server has sleep={self.sleep!r}, wake={self.wake!r}: a server is put to sleep by the replica that "
                "starts it with command=, over http://; leave both out"
            )
        elif not all(path.startswith("/") for path in (self.sleep, self.wake)) and (self.sleep or self.wake):
            yield f"server needs both sleep={self.sleep!r} and wake={self.wake!r}, such as '/sleep' and '/wake_up'"
        if self.protocol != "http" and not self.model:
            yield "server has no model; name it as the server does, e.g. model='rank'"
        try:
            if duration_s(self.timeout) <= 0:
                yield f"server timeout {self.timeout!r} must be above 0"
        except ValueError as error:
            yield f"server timeout: {error}"
        if not is_whole(self.retries, 0):
            yield f"server retries {self.retries!r} must be a whole number, 0 or more"
        if not is_whole(self.max_response_bytes):
            yield f"server max_response_bytes {self.max_response_bytes!r} must be a whole number, 1 or more"


def OpenInference(
    url: str, *, model: str, request: Callable[[Any], Any], response: Callable[..., Any], **more: Any
) -> ModelServer:
    """A server of the Open Inference Protocol v2: Triton, KServe, MLServer, Seldon, OpenVINO Model Server.

    A batch is one request: over HTTP, in JSON or with ``binary=True``, or over gRPC (``grpc://``, which needs the extra
    ``grpc``). ``request`` returns the inputs of one event by name: numbers, strings, bytes, lists or numpy arrays, of
    one shape and type for all events. A number ``x`` is of shape [batch], and ``[x]`` of [batch, 1], which many models
    on Triton take. Python's numbers are INT64 and FP64, ``numpy.float32(x)`` is FP32. ``response`` gets its outputs by
    name, as numpy arrays without the dimension of the batch, or strings; one number or string per event is itself.
    JSON has no bytes; without it, an output's strings are bytes where one of them is not UTF-8.

    Args:
        url: of the server.
        model: its name there.
        request: see above.
        response: see above.
        more: other fields of `ModelServer`.
    """
    return ModelServer("open_inference", url, request, response, model, **more)


def TensorFlowServing(
    url: str, *, model: str, request: Callable[[Any], Any], response: Callable[..., Any], **more: Any
) -> ModelServer:
    """A server of TensorFlow Serving's REST interface. A batch is one request.

    ``request`` returns the instance of one event: a number, text, bytes, list or numpy array, or a dict of such by the
    inputs' names. ``response`` gets the prediction: a number, text, bytes or list, or a dict of such by the outputs'
    names.

    Args:
        url: of the server, whose REST port is 8501 unless it was given another one.
        model: its name there.
        request: see above.
        response: see above.
        more: other fields of `ModelServer`.
    """
    return ModelServer("tensorflow", url, request, response, model, **more)


def OpenAI(
    url: str, *, model: str, request: Callable[[Any], Any], response: Callable[..., Any], **more: Any
) -> ModelServer:
    """A server of OpenAI's HTTP interface: vLLM, SGLang, llama.cpp.

    An event is one request, to ``path``, by default ``/v1/chat/completions``. ``request`` returns its body without the
    model, such as ``{"messages": [...], "max_tokens": 64}``; ``response`` gets the body of the answer.

    Args:
        url: of the server.
        model: its name there.
        request: see above.
        response: see above.
        more: other fields of `ModelServer`.
    """
    return ModelServer("openai", url, request, response, model, **{"path": "/v1/chat/completions", **more})


def RayServe(url: str, *, request: Callable[[Any], Any], response: Callable[..., Any], **more: Any) -> ModelServer:
    """An application of Ray Serve, or whatever else takes JSON by POST and answers JSON: an event is one request.

    Args:
        url: of the application, its route included.
        request: returns the body for an event.
        response: gets the body of the answer.
        more: other fields of `ModelServer`.
    """
    return ModelServer("http", url, request, response, **more)
