"""What the Kubernetes API server's refusals come to."""

import httpx2
import pytest
from lightkube import ApiError

from inferline_stream.actuators.kubernetes.api_server import translated, wanted_pause_s
from inferline_stream.errors import Unreachable

REQUEST = httpx2.Request("GET", "https://cluster/api/v1/pods")


def refusal(code: int, given: str) -> ApiError:
    status = {"kind": "Status", "code": code, "message": "too many requests"}
    return ApiError(
        REQUEST,
        httpx2.Response(code, headers={"Retry-After": given} if given else {}, json=status, request=REQUEST),
    )


@pytest.mark.parametrize(
    ("given", "wait_s"), [("7", 7.0), ("86400", 30.0), ("Fri, 31 Dec 1999 23:59:59 GMT", 0.0), ("", 0.0)]
)
def test_an_api_server_that_wants_a_pause_gets_it_within_bounds(given: str, wait_s: float) -> None:
    assert wanted_pause_s(refusal(429, given)) == wait_s


@pytest.mark.parametrize("code", [429, 503])
def test_what_may_pass_by_itself_is_tried_again(code: int) -> None:
    with pytest.raises(Unreachable, match="cannot do it now: too many requests"), translated():
        raise refusal(code, "")


def test_so_is_a_proxys_refusal() -> None:
    response = httpx2.Response(429, headers={"Retry-After": "2"}, text="Too many requests", request=REQUEST)
    with pytest.raises(Unreachable, match="429 Too Many Requests: /api/v1/pods"), translated():
        response.raise_for_status()
