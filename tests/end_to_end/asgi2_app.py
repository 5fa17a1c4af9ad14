"""An ASGI 2 app: a class that is made for each connection."""

import json
from collections.abc import Awaitable, Callable
from typing import Any

import asgibus


class App:
    def __init__(self, scope: dict[str, Any]) -> None:
        if scope["type"] not in ("http", "websocket"):
            raise ValueError("no such thing here")
        self.scope = scope

    async def __call__(
        self, receive: Callable[[], Awaitable[dict[str, Any]]], send: Callable[[dict[str, Any]], Awaitable[None]]
    ) -> None:
        if self.scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.accept"})
            await asgibus.connection(self.scope).group_add("everybody")
            while (event := await receive())["type"] == "websocket.receive":
                said = {"type": "websocket.send", "text": event["text"]}
                await asgibus.connection(self.scope).group_send("everybody", said)
            return
        event = await receive()
        body = event["body"]
        while event["more_body"]:
            event = await receive()
            body += event["body"]
        answer = {"version": self.scope["asgi"]["version"], "path": self.scope["path"], "body": body.decode()}
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": json.dumps(answer).encode()})


app = App
