"""Which dispatcher a dispatcher's host starts, where hosts are on other machines: beside the grants, in their topic.

A host of a stage is started without a dispatcher, as a pod is by its Deployment. It follows the assignments topic and
runs what the newest record of its own key names. A dispatcher whose record is replaced or deleted drains and ends.
"""

from __future__ import annotations

import msgspec

from inferline_stream.dataplane.process_specs import DispatcherSpec
from inferline_stream.pipeline.names import WIRE_VERSION, check_version

_PREFIX = "host:"


class Posting(msgspec.Struct, frozen=True, tag="posting"):
    """What one host runs from now on. Key: `posting_key`."""

    host: str
    dispatcher: DispatcherSpec
    slots: int
    """Of the stage, so that replicas know among how many dispatchers to choose."""
    version: int = WIRE_VERSION

    def __post_init__(self) -> None:
        check_version(self.version)


def posting_key(host: str) -> str:
    """Key of a host's records. No slot's key looks like one."""
    return f"{_PREFIX}{host}"


def host_of(key: str) -> str:
    """Return the host of a key; empty for other records' keys."""
    return key.removeprefix(_PREFIX) if key.startswith(_PREFIX) else ""


def encode_posting(posting: Posting) -> bytes:
    """A posting as JSON."""
    return msgspec.json.encode(posting)


_decode = msgspec.json.Decoder(Posting).decode


def decode_posting(key: str, value: bytes) -> Posting:
    """Read a record of a host.

    Raises:
        ValueError: it is none, or that of another host; see also `errors.UNREADABLE`.
    """
    posting: Posting = _decode(value)
    if key != posting_key(posting.host):
        raise ValueError(f"the key {key!r} is not its own, {posting_key(posting.host)!r}")
    return posting
