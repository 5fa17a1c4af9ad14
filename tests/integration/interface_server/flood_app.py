"""The embedded app of the flood tests, which measures how long the event loop is held."""

import asyncio
import contextlib
import json
import os
import time

ACCEPT = {"type": "websocket.accept"}
BEAT_SECONDS = 0.001


class Heart:
    """A periodic task that records the most CPU time of the process between two beats.

    CPU time is measured because a busy machine may stop the process for any time.
    """

    def __init__(self) -> None:
        self.longest = 0.0
        self._last = time.process_time()
        self._loop = asyncio.get_running_loop()
        self._loop.call_soon(self._beat)

    def _beat(self) -> None:
        now = time.process_time()
        self.longest = max(self.longest, now - self._last)
        self._last = now
        self._loop.call_later(BEAT_SECONDS, self._beat)


GATE = asyncio.Event()
FILES = []


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        scope["state"]["heart"] = Heart()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
    elif scope["type"] == "http":
        await http(scope, receive, send)
    elif scope["type"] == "line":
        while (await receive())["type"] == "line.receive":
            pass
    else:
        await receive()
        await websocket(scope, receive, send)


async def http(scope, receive, send):
    heart = scope["state"]["heart"]
    body = b"hello"
    if scope["path"] == "/longest":
        body = json.dumps(heart.longest).encode()
        heart.longest = 0.0
    elif scope["path"] == "/exhaust":
        with contextlib.suppress(OSError):
            while True:
                FILES.append(os.open(os.devnull, os.O_RDONLY))
    elif scope["path"] == "/release":
        while FILES:
            os.close(FILES.pop())
    elif scope["path"] == "/open":
        GATE.set()
    elif scope["path"] == "/shut":
        GATE.clear()
    elif scope["path"] == "/count":
        size, more = 0, True
        while more:
            event = await receive()
            size += len(event["body"])
            more = event["more_body"]
        body = str(size).encode()
    headers = [(b"content-length", b"%d" % len(body))]
    if scope["path"] == "/stream":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body, "more_body": True})
        await GATE.wait()
        await send({"type": "http.response.body", "body": b""})
        return
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def websocket(scope, receive, send):
    if scope["path"] == "/late":
        await GATE.wait()
    await send(ACCEPT)
    if scope["path"] in ("/deaf", "/late"):
        await GATE.wait()
    messages = 0
    while (event := await receive())["type"] == "websocket.receive":
        messages += 1
        if scope["path"] == "/echo":
            await send({**event, "type": "websocket.send"})
        elif event.get("text") == "count":
            await send({"type": "websocket.send", "text": str(messages)})
