"""Event streams of numbers. `/numbers` continues behind Last-Event-ID, `/plain` has no ids.

Each event is sent in two parts, so that at every moment a half one is on its way.
"""

import asyncio
import os
from contextlib import suppress
from typing import Any

PAUSE = float(os.environ.get("PAUSE", "0.005"))  # seconds between two parts


async def app(scope: Any, receive: Any, send: Any) -> None:
    assert scope["type"] == "http"
    number = int(dict(scope["headers"]).get(b"last-event-id", 0))
    stream = asyncio.create_task(_send_numbers(scope["path"], number, send))
    while (await receive())["type"] != "http.disconnect":
        pass
    stream.cancel()
    with suppress(asyncio.CancelledError, OSError):
        await stream


async def _send_numbers(path: str, number: int, send: Any) -> None:
    headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    while True:
        number += 1
        name = b"" if path == "/plain" else b"id: %d\r\n" % number
        for part in (b"%bdata: %d\r\nda" % (name, os.getpid()), b"ta: %d\r\n\r\n" % number):
            await send({"type": "http.response.body", "body": part, "more_body": True})
            await asyncio.sleep(PAUSE)
