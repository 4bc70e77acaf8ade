"""What the Kubernetes API server's refusals come to."""

import httpx2
import pytest
from lightkube import ApiError

from inferline_stream.actuators.kubernetes.api_server import translated
from inferline_stream.errors import Unreachable

REQUEST = httpx2.Request("GET", "https://cluster/api/v1/pods")


@pytest.mark.parametrize(
    ("given", "wait_s"), [("7", 7.0), ("86400", 30.0), ("Fri, 31 Dec 1999 23:59:59 GMT", 0.0), ("", 0.0)]
)
@pytest.mark.parametrize("code", [429, 503])
def test_an_api_server_that_wants_a_pause_gets_it_within_bounds(code: int, given: str, wait_s: float) -> None:
    status = {"kind": "Status", "code": code, "message": "too many requests"}
    response = httpx2.Response(code, headers={"Retry-After": given} if given else {}, json=status, request=REQUEST)
    with pytest.raises(Unreachable, match="cannot do it now: too many requests") as caught, translated():
        raise ApiError(REQUEST, response)
    assert caught.value.wait_s == wait_s


def test_a_proxy_that_wants_a_pause_gets_it() -> None:
    response = httpx2.Response(429, headers={"Retry-After": "2"}, text="Too many requests", request=REQUEST)
    with pytest.raises(Unreachable, match="429 Too Many Requests: /api/v1/pods") as caught, translated():
        response.raise_for_status()
    assert caught.value.wait_s == 2.0
