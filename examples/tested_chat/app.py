"""A chat room whose messages are moderated, written to be tested: `make_app(allowed)` returns an ASGI app.

`/` is a page to try it with. `/room/<name>` is a WebSocket; `POST /room/<name>` says something from outside. Each
message of a socket has a number, which the app keeps with the connection: one that is given to it twice, as a worker
died, is said once.
"""

import json
import re
from collections.abc import Awaitable, Callable
from typing import Any

import asgibus
from asgibus.layers import ChannelLayer

Event = dict[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]
Allowed = Callable[[str], Awaitable[bool]]

PAGE = b"""<!doctype html><html lang="en"><meta name="viewport" content="width=device-width"><title>tea</title>
<ul id=said aria-live=polite></ul><input id=text autofocus aria-label=Message placeholder="say something">
<script>
const socket = new WebSocket(`${location.protocol.replace("http", "ws")}//${location.host}/room/tea`)
let number = 0
socket.onmessage = event => said.append(Object.assign(document.createElement("li"), {textContent: event.data}))
text.onchange = () => { socket.send(JSON.stringify({number: ++number, text: text.value})); text.value = "" }
</script>"""


def make_app(allowed: Allowed) -> Callable[[Event, Receive, Send], Awaitable[None]]:
    """Return the app. It calls `allowed` for every text, as it would call a slow service."""

    async def app(scope: Event, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await chat(scope, receive, send)
        elif scope["type"] == "http" and scope["path"] == "/":
            await answer(send, 200, PAGE)
        elif scope["type"] == "http" and scope["method"] == "POST" and room(scope):
            await announce(scope, receive, send)
        elif scope["type"] == "http":
            await answer(send, 404, b"There is nothing here.")
        else:
            raise ValueError(f"the chat serves http and websocket, not {scope['type']}")

    async def chat(scope: Event, receive: Receive, send: Send) -> None:
        connection = asgibus.connection(scope)
        await receive()  # websocket.connect
        if not room(scope):
            await send({"type": "websocket.close"})
            return
        await send({"type": "websocket.accept"})
        await connection.group_add(room(scope))
        if not connection.resumed:
            await send({"type": "websocket.send", "text": "welcome"})
        while (event := await receive())["type"] == "websocket.receive":
            message = json.loads(event["text"])
            if message["number"] <= connection.state.get("last", 0):
                continue  # an earlier run has published it and died before the acknowledgement
            await say(connection.layer, room(scope), message["text"])
            connection.state["last"] = message["number"]
            await connection.save_state()

    async def announce(scope: Event, receive: Receive, send: Send) -> None:
        body = b""
        while (event := await receive())["type"] == "http.request":
            body += event["body"]
            if not event["more_body"]:
                await say(asgibus.connection(scope).layer, room(scope), body.decode())
                await answer(send, 204)
                return

    async def say(layer: ChannelLayer, group: str, text: str) -> None:
        if await allowed(text):
            await layer.group_send(group, {"type": "websocket.send", "text": text})

    return app


def room(scope: Event) -> str:
    """Return the group of the room in the path, or an empty string."""
    match = re.fullmatch(r"/room/([A-Za-z0-9_-]{1,50})", scope["path"])
    return f"room.{match[1]}" if match else ""


async def answer(send: Send, status: int, body: bytes = b"") -> None:
    """Answer a request."""
    headers = [(b"content-type", b"text/html; charset=utf-8")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def everything(text: str) -> bool:
    """Allow every text."""
    return True


app = make_app(everything)
