"""Quart: it cancels a handler whose client leaves, and so its documentation has it handle that as a disconnect."""

import asyncio

from quart import Quart, websocket

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
    except asyncio.CancelledError:
        connected.discard(queue)
        note(f"left {name}")
        for each in connected:
            each.put_nowait(f"{name} left the chat")
        raise
    finally:
        speaking.cancel()
        await asyncio.gather(speaking, return_exceptions=True)
        note(f"cleaned up {name}")
