"""ASGI 2 apps as ASGI 3, and ASGI 3 apps as ASGI 2."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]
Instance = Callable[[Receive, Send], Awaitable[None]]
DoubleApplication = Callable[[Scope], Instance]


def double_to_single_callable(app: DoubleApplication) -> Application:
    """The ASGI 3 app that runs this ASGI 2 app. The scope it hands on is a copy that says ASGI 2.0."""

    async def single_callable(scope: Scope, receive: Receive, send: Send) -> None:
        await app(_called(scope, "2.0"))(receive, send)

    return single_callable


def single_to_double_callable(app: Application) -> DoubleApplication:
    """The ASGI 2 app that runs this ASGI 3 app, for a server that knows only these.

    The scope it hands on is a copy that says ASGI 3.0. What the server leaves out of it stays left out.
    """

    def double_callable(scope: Scope) -> Instance:
        async def instance(receive: Receive, send: Send) -> None:
            await app(_called(scope, "3.0"), receive, send)

        return instance

    return double_callable


def _called(scope: Scope, version: str) -> Scope:
    """The scope with the version of ASGI in which the app is called."""
    return {**scope, "asgi": {**scope.get("asgi", {}), "version": version}}
