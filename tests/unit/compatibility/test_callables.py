"""Adapters between ASGI 2 and ASGI 3, called as a server would."""

from typing import Any

import pytest
from asgiref.testing import ApplicationCommunicator

from asgibus.compatibility import double_to_single_callable, single_to_double_callable

pytestmark = pytest.mark.anyio


async def single(scope: Any, receive: Any, send: Any) -> None:
    event = await receive()
    await send({"type": "answer", "version": scope["asgi"]["version"], "path": scope["path"], "got": event})


class Double:
    def __init__(self, scope: Any) -> None:
        self.scope = scope

    async def __call__(self, receive: Any, send: Any) -> None:
        await single(self.scope, receive, send)


async def answer(app: Any) -> Any:
    """Return the answer of an ASGI 3 app."""
    scope = {"type": "http", "path": "/", "asgi": {"version": "other", "spec_version": "2.5"}, "extensions": {}}
    passed = {**scope, "asgi": scope["asgi"]}
    communicator = ApplicationCommunicator(app, passed)
    await communicator.send_input({"type": "event"})
    event = await communicator.receive_output(1)
    await communicator.wait(1)
    assert passed == scope, "the scope is the server's"
    return event


async def test_an_asgi_2_app_as_asgi_3() -> None:
    expected = {"type": "answer", "version": "2.0", "path": "/", "got": {"type": "event"}}
    assert await answer(double_to_single_callable(Double)) == expected


async def test_an_asgi_3_app_as_asgi_2() -> None:
    double = single_to_double_callable(single)

    async def server(scope: Any, receive: Any, send: Any) -> None:
        await double(scope)(receive, send)

    expected = {"type": "answer", "version": "3.0", "path": "/", "got": {"type": "event"}}
    assert await answer(server) == expected


async def test_a_scope_without_a_version_gets_one() -> None:
    scopes = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scopes.append(scope)

    await single_to_double_callable(app)({"type": "http"})(None, None)  # type: ignore[arg-type]
    assert scopes == [{"type": "http", "asgi": {"version": "3.0"}}]
