"""Quart: it cancels a handler whose client leaves. So the handler has to ask whether its client was handed over."""

import asyncio

from quart import Quart, websocket

import asgibus
from frameworks.moving.notes import note

app = Quart(__name__)
connected: set[asyncio.Queue[str]] = set()


@app.websocket("/chat/<name>")
async def chat(name: str) -> None:
    """Read from the client in one task, and send the lines of all clients in another."""
    queue: asyncio.Queue[str] = asyncio.Queue()

    async def speak() -> None:
        while True:
            await websocket.send(await queue.get())

    speaking = asyncio.ensure_future(speak())
    connected.add(queue)
    try:
        while True:
            text = await websocket.receive()
            await websocket.send(f"you: {text}")
            for each in connected:
                each.put_nowait(f"{name}: {text}")
    finally:
        connected.discard(queue)
        speaking.cancel()
        await asyncio.gather(speaking, return_exceptions=True)
        if not asgibus.connection(websocket.scope).handed_over:
            note(f"left {name}")
            for each in connected:
                each.put_nowait(f"{name} left the chat")
        note(f"cleaned up {name}")
