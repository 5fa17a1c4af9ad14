"""Adapt ASGI 2 apps to ASGI 3, and ASGI 3 apps to ASGI 2."""

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
    """Return an ASGI 3 app that runs an ASGI 2 app.

    The app gets a copy of the scope whose `asgi["version"]` is `"2.0"`.

    Args:
        app: An app that is called as `await app(scope)(receive, send)`.

    Returns:
        An app that is called as `await app(scope, receive, send)`.
    """

    async def single_callable(scope: Scope, receive: Receive, send: Send) -> None:
        await app(_with_version(scope, "2.0"))(receive, send)

    return single_callable


def single_to_double_callable(app: Application) -> DoubleApplication:
    """Return an ASGI 2 app that runs an ASGI 3 app, for servers that know only ASGI 2.

    The app gets a copy of the scope whose `asgi["version"]` is `"3.0"`. Keys that the server leaves out stay missing.

    Args:
        app: An app that is called as `await app(scope, receive, send)`.

    Returns:
        An app that is called as `await app(scope)(receive, send)`.
    """

    def double_callable(scope: Scope) -> Instance:
        async def instance(receive: Receive, send: Send) -> None:
            await app(_with_version(scope, "3.0"), receive, send)

        return instance

    return double_callable


def _with_version(scope: Scope, version: str) -> Scope:
    """Return a copy of the scope with the version of ASGI that the app is called with."""
    return {**scope, "asgi": {**scope.get("asgi", {}), "version": version}}
