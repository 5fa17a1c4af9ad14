"""An app whose every path does one thing; the test holds it and looks into it through `App`."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any
from urllib.parse import unquote

import asgibus
from support.bus import until


class App:
    """`/hold` and the message "hold" wait until `release` is set; `log` has the events."""

    def __init__(self) -> None:
        self.release = asyncio.Event()
        self.log: list[str] = []
        self.counts: Counter[str] = Counter()
        self.stray: list[asyncio.Task[None]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await {"lifespan": self.lifespan, "http": self.http, "websocket": self.websocket, "channel": self.channel}[
            scope["type"]
        ](scope, receive, send)

    async def until(self, line: str, number: int = 1) -> None:
        """Wait until `line` is in the log so many times."""
        await until(lambda: self.log.count(line) >= number, what=f"{line} in the log")

    async def lifespan(self, scope: Any, receive: Any, send: Any) -> None:
        await receive()
        self.counts["started"] += 1
        scope["state"]["worker"] = self.counts["started"]
        await send({"type": "lifespan.startup.complete"})
        await receive()
        self.log.append("shut down")
        await send({"type": "lifespan.shutdown.complete"})

    async def http(self, scope: Any, receive: Any, send: Any) -> None:
        path = scope["path"].strip("/")
        self.log.append(path)
        match path:
            case "hold":
                await self.release.wait()
            case "half":
                await send({"type": "http.response.start", "status": 200, "headers": []})
                await send({"type": "http.response.body", "body": b"half", "more_body": True})
                self.log.append("half sent")
                await self.release.wait()
                await send({"type": "http.response.body", "body": b" done"})
                return
            case "raise":
                raise ArithmeticError("as asked")
            case "stray":
                self.stray.append(asyncio.create_task(self.for_ever()))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": f"worker {scope['state']['worker']}".encode()})

    async def for_ever(self) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            self.log.append("stray task ended")

    async def websocket(self, scope: Any, receive: Any, send: Any) -> None:
        connection = asgibus.connection(scope)
        await receive()
        if scope["path"] == "/refuse":
            return await send({"type": "websocket.close"})
        await send({"type": "websocket.accept"})
        await connection.group_add("all")
        self.log.append(f"run {connection.attempt}")
        try:
            while (event := await receive())["type"] == "websocket.receive":
                await self.message(unquote(event["text"]), connection, scope, send)
            self.log.append(f"disconnect {event['code']}")
        finally:
            self.log.append("finally")
            await connection.group_send("all", {"type": "websocket.send", "text": "somebody left"})
            self.log.append("finally sent")

    async def message(self, text: str, connection: asgibus.Connection, scope: Any, send: Any) -> None:
        self.log.append(text)
        connection.state["count"] = connection.state.get("count", 0) + 1
        match text:
            case "hold":
                await self.release.wait()
            case "raise":
                raise ArithmeticError("as asked")
            case "save":
                await connection.save_state()
        await send({"type": "websocket.send", "text": f"{text} {connection.state['count']}"})

    async def channel(self, scope: Any, receive: Any, send: Any) -> None:
        message = await receive()
        self.log.append(f"message {message['text']}")
        if message["text"] == "hold":
            await self.release.wait()
        self.log.append(f"handled {message['text']}")
