"""A chat room whose messages are moderated, written to be tested: `make_app(allowed)` gives an ASGI app.

`/room/<name>` is a WebSocket; `POST /room/<name>` says something from outside. Every message of a socket has a number,
which the app keeps with the connection: one that is given to it twice, because a worker died, is said once.
"""

import json
from collections.abc import Awaitable, Callable
from typing import Any

import asgibus
from asgibus.layers import ChannelLayer

Event = dict[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]
Allowed = Callable[[str], Awaitable[bool]]


def make_app(allowed: Allowed) -> Callable[[Event, Receive, Send], Awaitable[None]]:
    """Return the app. `allowed` is asked about every text; think of a service that takes its time."""

    async def app(scope: Event, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await chat(scope, receive, send)
        elif scope["type"] == "http":
            await announce(scope, receive, send)
        else:
            raise ValueError(f"the chat serves http and websocket, not {scope['type']}")

    async def chat(scope: Event, receive: Receive, send: Send) -> None:
        connection = asgibus.connection(scope)
        await receive()  # websocket.connect
        await send({"type": "websocket.accept"})
        await connection.group_add(room(scope))
        if not connection.resumed:
            await send({"type": "websocket.send", "text": "welcome"})
        while (event := await receive())["type"] == "websocket.receive":
            message = json.loads(event["text"])
            if message["number"] <= connection.state.get("last", 0):
                continue  # an earlier run has said it, and died before the bus knew
            await say(connection.layer, room(scope), message["text"])
            connection.state["last"] = message["number"]
            await connection.save_state()

    async def announce(scope: Event, receive: Receive, send: Send) -> None:
        body = b""
        while (event := await receive())["type"] == "http.request":
            body += event["body"]
            if not event["more_body"]:
                await say(asgibus.connection(scope).layer, room(scope), body.decode())
                await send({"type": "http.response.start", "status": 204, "headers": []})
                await send({"type": "http.response.body"})
                return

    async def say(layer: ChannelLayer, group: str, text: str) -> None:
        if await allowed(text):
            await layer.group_send(group, {"type": "websocket.send", "text": text})

    return app


def room(scope: Event) -> str:
    """Return the group of the room in the path."""
    return "room." + scope["path"].removeprefix("/room/")


async def everything(text: str) -> bool:
    """Allow whatever is said."""
    return True


app = make_app(everything)
