"""Who may connect to a stage's dispatchers: a key and a certificate for either side, each trusting the other's alone.

They are made for one stage of one run. A replica's key is of no use to pass for a dispatcher, nor for another stage.
"""

from __future__ import annotations

import datetime
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

OWN, OTHER = "own.pem", "other.pem"
"""In a side's folder: its own key and certificate, and the certificate of the other side."""

_VALID = datetime.timedelta(days=3650)
"""Longer than any run: a certificate counts because it is the one that the other side was given, and goes with it."""


@dataclass(frozen=True, slots=True, repr=False)
class Credential:
    """Files of a side's folder, by name."""

    dispatcher: Mapping[str, bytes]
    replica: Mapping[str, bytes]


def new_credential(what: str) -> Credential:
    """Return keys and certificates that nobody has had before.

    Args:
        what: names the stage, for people who look at a certificate.

    Raises:
        ImportError: the library `cryptography` is missing.
    """
    dispatcher_own, dispatcher = _self_signed(f"dispatcher of {what}")
    replica_own, replica = _self_signed(f"replica of {what}")
    return Credential({OWN: dispatcher_own, OTHER: replica}, {OWN: replica_own, OTHER: dispatcher})


def _self_signed(name: str) -> tuple[bytes, bytes]:
    """Return key and certificate, and the certificate alone, in PEM."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name[:64])])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))  # clocks differ
        .not_valid_after(now + _VALID)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return private + certificate, certificate


def dispatcher_context(folder: Path) -> ssl.SSLContext:
    """Return TLS for a dispatcher's host, which serves who has the replicas' key."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _both(context, folder)
    return context


def replica_context(folder: Path) -> ssl.SSLContext:
    """Return TLS for a replica's host, which connects to who has the dispatchers' key, whatever its address."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # the one certificate that is trusted says enough
    _both(context, folder)
    return context


def _both(context: ssl.SSLContext, folder: Path) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(folder / OWN)
    context.load_verify_locations(folder / OTHER)
    context.verify_mode = ssl.CERT_REQUIRED
