"""The token for Amazon MSK is a request that AWS would take: its signature is found again by Signature Version 4."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import sys
from urllib.parse import parse_qsl, quote, urlsplit

from inferline_stream.isolation.token_program import program_says

KEY, SECRET, REGION = "AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", "eu-west-1"


def keyed(key: bytes, text: str) -> bytes:
    return hmac.new(key, text.encode(), hashlib.sha256).digest()


async def test_its_token_is_signed_for_the_region_and_lasts_a_quarter_of_an_hour() -> None:
    credentials = f"AWS_ACCESS_KEY_ID={KEY} AWS_SECRET_ACCESS_KEY={SECRET} AWS_EC2_METADATA_DISABLED=true"
    said = await program_says(f"env {credentials} {sys.executable} -m inferline_stream.kafka.msk_token {REGION}")
    document = json.loads(said)
    assert 800 < document["expires_in"] <= 900
    token = document["access_token"]
    url = urlsplit(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)).decode())
    query = dict(parse_qsl(url.query))
    assert (url.hostname, query["Action"]) == (f"kafka.{REGION}.amazonaws.com", "kafka-cluster:Connect")

    signature = query.pop("X-Amz-Signature")
    query.pop("User-Agent")  # added to what was signed
    scope = query["X-Amz-Credential"].removeprefix(f"{KEY}/")
    listed = "&".join(f"{quote(name, safe='-_.~')}={quote(query[name], safe='-_.~')}" for name in sorted(query))
    canonical = ["GET", "/", listed, f"host:{url.hostname}\n", "host", hashlib.sha256(b"").hexdigest()]
    digest = hashlib.sha256("\n".join(canonical).encode()).hexdigest()
    key = f"AWS4{SECRET}".encode()
    for part in scope.split("/"):
        key = keyed(key, part)
    assert signature == keyed(key, "\n".join(["AWS4-HMAC-SHA256", query["X-Amz-Date"], scope, digest])).hex()
