"""Apps whose clients disconnect. Each notes its beginning and its end in a file, by the clock of the machine."""

import asyncio
import os
import time
from pathlib import Path
from urllib.parse import parse_qs


async def app(scope, receive, send):
    if scope["type"] not in ("http", "websocket"):
        raise ValueError(scope["type"])
    (name,) = parse_qs(scope["query_string"].decode())["name"]
    notes = Path(os.environ["NOTES"], name)
    notes.with_suffix(".begun").touch()
    how = "returned"
    try:
        await globals()[scope["path"][1:]](receive, send, notes)
    except OSError as error:
        how = type(error).__name__
    except asyncio.CancelledError:
        how = "cancelled"
        raise
    finally:
        temporary = notes.with_suffix(".tmp")
        temporary.write_text(f"{time.monotonic()} {how}")
        temporary.rename(notes.with_suffix(".ended"))


async def start(send, status=200):
    await send({"type": "http.response.start", "status": status, "headers": []})


async def stream(receive, send, notes):
    """Send small parts often."""
    await start(send)
    while True:
        await send({"type": "http.response.body", "body": b"tick\n", "more_body": True})
        await asyncio.sleep(0.005)


async def flood(receive, send, notes):
    """Send as fast as `send` returns."""
    await start(send)
    while True:
        await send({"type": "http.response.body", "body": bytes(65536), "more_body": True})
        notes.with_suffix(".sending").touch()


async def poll(receive, send, notes):
    """Wait for news or for the disconnect of the client."""
    await receive()
    notes.with_suffix(".sending").touch()
    assert (await receive())["type"] == "http.disconnect"


async def poll_beside(receive, send, notes):
    """Wait for the disconnect in one task, which cancels the working task, as frameworks do."""
    await receive()
    notes.with_suffix(".sending").touch()
    work = asyncio.create_task(asyncio.sleep(60))

    async def watch():
        assert (await receive())["type"] == "http.disconnect"
        work.cancel()

    watching = asyncio.create_task(watch())
    await asyncio.wait([work])
    await watching


async def upload(receive, send, notes):
    """Receive a body that never ends."""
    while (event := await receive())["type"] == "http.request":
        assert event["more_body"]
        notes.with_suffix(".sending").touch()


async def listen(receive, send, notes):
    """Only receive on a WebSocket."""
    await receive()
    await send({"type": "websocket.accept"})
    notes.with_suffix(".sending").touch()
    assert (await receive())["type"] == "websocket.disconnect"


async def push(receive, send, notes):
    """Only send on a WebSocket."""
    await receive()
    await send({"type": "websocket.accept"})
    while True:
        await send({"type": "websocket.send", "text": "tick"})
        notes.with_suffix(".sending").touch()
        await asyncio.sleep(0.005)


async def hesitate(receive, send, notes):
    """Keep a WebSocket waiting for its accept."""
    await receive()
    notes.with_suffix(".sending").touch()
    assert (await receive())["type"] == "websocket.disconnect"
