"""An ASGI 2 app without a framework: a class that is made for each connection."""

import asyncio
import hashlib
import json
from collections import defaultdict
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import parse_qs, parse_qsl

import python_multipart

import asgibus

NOTES: list[str] = []
gates: dict[str, asyncio.Event] = defaultdict(asyncio.Event)
tasks: set[asyncio.Task[None]] = set()


class App:
    def __init__(self, scope: dict[str, Any]) -> None:
        if scope["type"] not in ("http", "websocket"):
            raise ValueError("no such thing here")
        self.scope = scope

    async def __call__(
        self, receive: Callable[[], Awaitable[dict[str, Any]]], send: Callable[[dict[str, Any]], Awaitable[None]]
    ) -> None:
        self.receive, self.send = receive, send
        path = self.scope["path"].removeprefix(self.scope["root_path"])
        page, _, self.name = path.strip("/").partition("/")
        kind = "ws" if self.scope["type"] == "websocket" else "http"
        await getattr(self, f"{kind}_{page or 'seen'}".replace("ä", "a"), self.missing)()

    async def answer(self, content: Any, status: int = 200, headers: tuple[tuple[bytes, bytes], ...] = ()) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        length = () if status == 204 else ((b"content-length", b"%d" % len(body)),)
        await self.send({"type": "http.response.start", "status": status, "headers": [*length, *headers]})
        await self.send({"type": "http.response.body", "body": body})

    async def body(self) -> bytes:
        parts, more = [], True
        while more:
            event = await self.receive()
            parts.append(event["body"])
            more = event["more_body"]
        return b"".join(parts)

    async def start(self, content_type: bytes) -> None:
        headers = [(b"content-type", content_type)]
        await self.send({"type": "http.response.start", "status": 200, "headers": headers})

    async def part(self, data: bytes, *, more: bool = True) -> None:
        await self.send({"type": "http.response.body", "body": data, "more_body": more})

    async def missing(self) -> None:
        if self.scope["type"] == "websocket":
            await self.send({"type": "websocket.close"})
        else:
            await self.answer(b"not found", 404)

    async def http_seen(self) -> None:
        headers = dict(self.scope["headers"])
        cookies = dict(pair.split("=") for pair in headers.get(b"cookie", b"").decode().split("; ") if pair)
        seen = {
            "method": self.scope["method"],
            "path": self.scope["path"],
            "root_path": self.scope["root_path"],
            "scheme": self.scope["scheme"],
            "host": headers[b"host"].decode(),
            "client": self.scope["client"][0],
            "query": dict(parse_qsl(self.scope["query_string"].decode())),
            "cookies": cookies,
        }
        await self.answer(seen, headers=((b"set-cookie", b"a=1"), (b"set-cookie", b"b=2")))

    async def http_form(self) -> None:
        await self.answer(parse_qs((await self.body()).decode()))

    async def http_upload(self) -> None:
        fields: dict[str, Any] = {}

        def on_field(field: Any) -> None:
            fields[field.field_name.decode()] = field.value.decode()

        def on_file(file: Any) -> None:
            file.file_object.seek(0)
            content = file.file_object.read()
            digest = hashlib.sha256(content).hexdigest()
            fields.update(name=file.file_name.decode(), size=len(content), digest=digest)
            file.close()

        headers = {name.decode().title(): value for name, value in self.scope["headers"]}
        parser = python_multipart.create_form_parser(headers, on_field, on_file)
        more = True
        while more:
            event = await self.receive()
            parser.write(event["body"])
            more = event["more_body"]
        parser.finalize()
        await self.answer(fields)

    async def http_raw(self) -> None:
        await self.answer(hashlib.sha256(await self.body()).hexdigest().encode())

    async def http_stream(self) -> None:
        await self.start(b"text/plain")
        await self.part(b"first\n")
        await gates[self.name].wait()
        try:
            await self.part(b"second\n", more=False)
        finally:
            NOTES.append(f"{self.name} over")

    async def http_go(self) -> None:
        gates[self.name].set()
        await self.answer(b"gone")

    async def http_large(self) -> None:
        await self.start(b"text/plain")
        for number in range(1000):
            await self.part(b"%d\n" % number * 1000)
        await self.part(b"", more=False)

    async def http_events(self) -> None:
        async def leave() -> None:
            while (await self.receive())["type"] != "http.disconnect":
                pass

        leaving = asyncio.create_task(leave())
        await self.start(b"text/event-stream")
        number = 0
        while not leaving.done():
            await self.part(b"id: %d\ndata: tick %d\n\n" % (number, number))
            number += 1
            await asyncio.wait([leaving], timeout=0.02)
        NOTES.append(f"{self.name} left")

    async def http_later(self) -> None:
        async def work() -> None:
            await gates[self.name].wait()
            NOTES.append(f"{self.name} done")

        task = asyncio.create_task(work())
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        await self.answer(b"soon")

    async def http_noted(self) -> None:
        await self.answer(NOTES)

    async def http_error(self) -> None:
        raise ArithmeticError("as asked")

    async def http_broken(self) -> None:
        await self.start(b"text/plain")
        await self.part(b"some\n")
        await gates[self.name].wait()
        raise ArithmeticError("as asked")

    async def http_teapot(self) -> None:
        await self.answer(b"short and stout", 418)

    async def http_old(self) -> None:
        root = self.scope["root_path"].encode()
        await self.answer(b"", 303, ((b"location", root + b"/%C3%A4pfel/gr%C3%BCn?q=%C3%BC"),))

    async def http_apfel(self) -> None:
        await self.answer({"name": self.name, "q": parse_qs(self.scope["query_string"].decode())["q"][0]})

    async def http_empty(self) -> None:
        await self.answer(b"", 204)

    async def ws_talk(self) -> None:
        await self.receive()
        protocol = "v1" if "v1" in self.scope["subprotocols"] else None
        headers = [(b"x-room", self.name.encode())]
        await self.send({"type": "websocket.accept", "subprotocol": protocol, "headers": headers})
        await self.send({"type": "websocket.send", "text": json.dumps({"name": self.name})})
        while (event := await self.receive())["type"] == "websocket.receive":
            if event.get("text") == "close":
                await self.send({"type": "websocket.close", "code": 4001, "reason": "as asked"})
                return
            if event.get("text") == "raise":
                raise ArithmeticError("as asked")
            if event.get("text") is not None:
                await self.send({"type": "websocket.send", "text": event["text"][::-1]})
            else:
                await self.send({"type": "websocket.send", "bytes": event["bytes"]})
        NOTES.append(f"{self.name} left: {event['code']} {event.get('reason')}")

    async def ws_everybody(self) -> None:
        await self.receive()
        await self.send({"type": "websocket.accept"})
        connection = asgibus.connection(self.scope)
        await connection.group_add("everybody")
        while (event := await self.receive())["type"] == "websocket.receive":
            await connection.group_send("everybody", {"type": "websocket.send", "text": event["text"]})

    async def ws_closed(self) -> None:
        await self.send({"type": "websocket.close"})


app = App
