"""Requests to an app that answers with its scope."""

import json
from typing import Any

from support.processes import Process
from support.raw import RawClient


def build_scope(server: Process, wire: bytes, **options: Any) -> dict[str, Any]:
    """Return the scope of a request, as the app of `http_app` reports it."""
    with RawClient(server, **options) as client:
        client.send(wire)
        response = client.read_response()
        assert response.status == 200, response
        scope: dict[str, Any] = json.loads(response.body)
        return scope


def get(target: str, *headers: str) -> bytes:
    return "\r\n".join([f"GET {target} HTTP/1.1", "Host: test", *headers, "", ""]).encode("latin-1")
