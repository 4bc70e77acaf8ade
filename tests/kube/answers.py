"""What a Kubernetes API server's answers look like on the wire, refusals included."""

from __future__ import annotations

import json

from aiohttp import web

from tests.kube.store import Json

POD = {"kind": "Pod", "apiVersion": "v1"}
"""Said of one that stands alone, and not in lists."""

SUCCESS = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}


def line(kind: str, item: Json) -> bytes:
    """One change of a watch."""
    return json.dumps({"type": kind, "object": item}).encode() + b"\n"


def failure(code: int, reason: str, message: str) -> Json:
    """What is said instead of what was asked for."""
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "code": code,
        "reason": reason,
        "message": message,
    }


def answer(item: Json, status: int = 200) -> web.Response:
    """An object."""
    # Without a charset, as the real one: clients look for exactly this type before they read an error's body.
    return web.Response(body=json.dumps(item).encode(), status=status, headers={"Content-Type": "application/json"})


def refused(code: int, reason: str, message: str) -> web.Response:
    """A refusal; the reason is one of Kubernetes' words."""
    return answer(failure(code, reason, message), status=code)


def missing(kind: str, name: str) -> web.Response:
    """The refusal of what is not there."""
    return refused(404, "NotFound", f'{kind} "{name}" not found')


def selector_of(request: web.Request) -> dict[str, str]:
    """Labels that what is listed must have."""
    return dict(part.split("=", 1) for part in request.query.get("labelSelector", "").split(",") if part)


def not_applicable(request: web.Request) -> web.Response | None:
    """Why a request is no server-side apply; None if it is."""
    if request.content_type != "application/apply-patch+yaml":
        return refused(415, "UnsupportedMediaType", "only server-side apply is understood here")
    if "fieldManager" not in request.query:
        needed = "fieldManager: Required value: is required for apply patch"
        return refused(422, "Invalid", f'PatchOptions.meta.k8s.io "" is invalid: {needed}')
    return None


async def body(request: web.Request) -> Json:
    """What a request carries; empty where it carries nothing."""
    text = await request.text()
    found: Json = json.loads(text) if text else {}
    return found
