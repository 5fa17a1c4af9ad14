"""A chat with rooms for FastAPI, in which nobody leaves when a worker is replaced.

    uvicorn app:app                                          # to develop, one process without Redis
    asgi-interface --layer redis://127.0.0.1:6379            # in production
    asgi-worker --resume app:app --layer redis://127.0.0.1:6379

The clients of a worker that stops continue in another one.
"""

from typing import Annotated

from fastapi import FastAPI, Path

from asgibus.fastapi import BusDep, GroupSocket

app = FastAPI()

Room = Annotated[str, Path(pattern=r"^[A-Za-z0-9_-]{1,50}$")]


@app.websocket("/rooms/{room}")
async def chat(socket: GroupSocket, room: Room, name: str, bus: BusDep) -> None:
    async with socket.joined(room):
        if not socket.resumed:
            await bus.send(room, f"{name} has joined", exclude=socket)
        async for text in socket.iter_text():
            await bus.send(room, f"{name}: {text}")
        await bus.send(room, f"{name} has left")  # the client is gone: at a deploy this is not reached


@app.post("/rooms/{room}")
async def announce(room: Room, text: str, bus: BusDep) -> None:
    await bus.send(room, text)
