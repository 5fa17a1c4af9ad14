"""Drop what consumers of Channels send to a client that has just left, as daphne does.

A consumer calls `receive` in a task of its own while it handles something else, such as a message of a group. An error
of `send` would end it before it has seen the disconnect that `receive` has returned, and without its `disconnect`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import MutableMapping
from typing import Any

from asgibus.compatibility.callables import Application, Receive, Scope, Send

logger = logging.getLogger("asgibus.worker")


def is_of_channels(app: object) -> bool:
    """Return whether an app is a router, a middleware or a consumer of Channels, such as a `ProtocolTypeRouter`."""
    if hasattr(app, "consumer_class"):
        return True
    return any(base.__module__.partition(".")[0] == "channels" for base in type(app).__mro__)


def without_late_errors(app: Application, gone: type[OSError]) -> Application:
    """Return an app whose WebSockets can send to a client that is gone: the message is dropped.

    Args:
        app: The app.
        gone: The error of `send` for such a message.
    """

    async def single_callable(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_or_drop(message: MutableMapping[str, Any]) -> None:
            try:
                await send(message)
            except gone as error:
                logger.debug("a message was dropped: %s", error)
                await asyncio.sleep(0)  # a consumer that sends without end must not block the event loop

        await app(scope, receive, send_or_drop if scope["type"] == "websocket" else send)

    return single_callable
