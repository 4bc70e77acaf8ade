"""Certificates for servers of a test, by openssl."""

import subprocess
from pathlib import Path


def certify(folder: Path, name: str) -> tuple[bytes, bytes]:
    """Make the key and the certificate of a server at localhost."""
    key, certificate = folder / f"{name}-key.pem", folder / f"{name}.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-subj", "/CN=any", "-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(certificate)],
        check=True, capture_output=True,
    )  # fmt: skip
    return key.read_bytes(), certificate.read_bytes()
