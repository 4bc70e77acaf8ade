"""A token program for Amazon MSK: ``python -m inferline_stream.kafka.msk_token eu-west-1`` prints an access token.

The extra `msk` has AWS' own signer. It finds credentials as all of AWS' libraries do: in the environment, in files, or
from the role of a pod or of an instance.
"""

from __future__ import annotations

import sys
import time

import msgspec
from aws_msk_iam_sasl_signer import MSKAuthTokenProvider


def main(region: str) -> None:
    """Print a token of the region's brokers, as `access_tokens` reads one."""
    token, expires_ms = MSKAuthTokenProvider.generate_auth_token(region)
    document = {"access_token": token, "expires_in": int(expires_ms / 1000 - time.time())}
    sys.stdout.write(msgspec.json.encode(document).decode())


if __name__ == "__main__":
    main(sys.argv[1])
