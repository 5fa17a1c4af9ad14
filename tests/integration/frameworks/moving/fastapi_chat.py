"""FastAPI: a chat with a manager of connections, as in its tutorial, and apps with two tasks for each socket."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Annotated

from fastapi import Depends, FastAPI, WebSocket, WebSocketDisconnect

import asgibus
from frameworks.moving.notes import note

app = FastAPI()


class Manager:
    def __init__(self) -> None:
        self.connected: list[WebSocket] = []

    async def connect(self, websocket: WebSocket) -> None:
        await websocket.accept()
        self.connected.append(websocket)

    def disconnect(self, websocket: WebSocket) -> None:
        self.connected.remove(websocket)

    async def broadcast(self, text: str) -> None:
        for each in self.connected:
            await each.send_text(text)


manager = Manager()


async def session(name: str) -> AsyncIterator[str]:
    try:
        yield name
    finally:
        note(f"released {name}")


def thread(name: str) -> Iterator[str]:
    try:
        yield name
    finally:
        note(f"freed {name}")


@app.websocket("/chat/{name}")
async def chat(
    websocket: WebSocket, name: Annotated[str, Depends(session)], _other: Annotated[str, Depends(thread)]
) -> None:
    await manager.connect(websocket)
    try:
        while True:
            text = await websocket.receive_text()
            await websocket.send_text(f"you: {text}")
            await manager.broadcast(f"{name}: {text}")
    except WebSocketDisconnect:
        manager.disconnect(websocket)
        note(f"left {name}")
        await manager.broadcast(f"{name} left the chat")
    finally:
        note(f"cleaned up {name}")


@app.websocket("/tasks/{name}")
async def tasks(websocket: WebSocket, name: str) -> None:
    """Read from the client in one task, and from Redis in another. The layer is that of the bus."""
    await websocket.accept()
    layer = asgibus.connection(websocket.scope).layer

    async def listen() -> None:
        async for text in websocket.iter_text():
            await websocket.send_text(f"you: {text}")
        note(f"left {name}")
        speaking.cancel()

    async def speak() -> None:
        channel = await layer.new_channel()
        await layer.group_add("tasks", channel)
        try:
            while True:
                await websocket.send_text((await layer.receive(channel))["text"])
        finally:
            await layer.group_discard("tasks", channel)

    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(listen())
            speaking = group.create_task(speak())
    finally:
        note(f"cleaned up {name}")


@app.websocket("/first/{name}")
async def first(websocket: WebSocket, name: str) -> None:
    """Wait for the first of two tasks."""
    await websocket.accept()
    queue: asyncio.Queue[str] = asyncio.Queue()

    async def listen() -> None:
        async for text in websocket.iter_text():
            queue.put_nowait(text)

    async def answer() -> None:
        while True:
            await websocket.send_text(f"you: {await queue.get()}")

    tasks = [asyncio.create_task(listen()), asyncio.create_task(answer())]
    try:
        _, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        note(f"left {name}")
    finally:
        note(f"cleaned up {name}")
