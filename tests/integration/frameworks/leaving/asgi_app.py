"""Plain ASGI: the app calls `receive` itself and gets the exceptions of `send`."""

import asyncio
from typing import Any

from frameworks.leaving.notes import PARTS, STEP, note, noting, released


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] not in ("http", "websocket"):
        raise NotImplementedError
    kind, _, name = scope["path"].strip("/").partition("/")
    if kind != "ready":
        with noting(name):
            await {"job": work, "upload": upload, "stream": stream, "socket": socket}[kind](name, receive, send)
    else:
        await answer(send, b"ready")


async def answer(send: Any, body: bytes) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


async def work(name: str, receive: Any, send: Any) -> None:
    await receive()
    await released(name)
    await answer(send, b"worked")
    note(name, (await receive())["type"])


async def upload(name: str, receive: Any, send: Any) -> None:
    while (event := await receive())["type"] == "http.request" and event["more_body"]:
        pass
    note(name, event["type"])
    await answer(send, b"uploaded")


async def stream(name: str, receive: Any, send: Any) -> None:
    """Stream without asking whether the client is there."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
    for _ in range(PARTS):
        await send({"type": "http.response.body", "body": b"data: part\n\n", "more_body": True})
        await asyncio.sleep(STEP)
    await send({"type": "http.response.body", "body": b""})


async def socket(name: str, receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "websocket.accept"})
    while (event := await receive())["type"] == "websocket.receive":
        if event["text"] == "late":
            await released(name)
            await send({"type": "websocket.send", "text": "late"})
        elif event["text"] == "close":
            await send({"type": "websocket.close", "code": 4001})
            note(name, f"{(event := await receive())['type']} {event['code']}")
            await send({"type": "websocket.send", "text": "behind the close"})
            return
    note(name, f"{event['type']} {event['code']}")
    await send({"type": "websocket.close"})
