"""WebSockets of Quart: an echo, a chat with two tasks for each socket, and a refusal."""

import asyncio
from pathlib import Path

from quart import Quart, abort, websocket

app = Quart(__name__)
listeners = set()


def note(text):
    with Path("notes").open("a") as notes:
        notes.write(f"{text}\n")


@app.get("/")
async def home():
    return "<!doctype html><title>Quart</title><link rel=icon href=data:,>"


@app.websocket("/echo")
async def echo():
    while True:
        await websocket.send(await websocket.receive())


@app.websocket("/json")
async def as_json():
    while True:
        await websocket.send_json({"got": await websocket.receive_json()})


@app.websocket("/chat/<name>")
async def chat(name):
    """Send the messages of all clients in one task, and receive from this client in another."""

    async def sending():
        queue = asyncio.Queue()
        listeners.add(queue)
        try:
            await websocket.send(f"hello {name}")
            while True:
                await websocket.send(await queue.get())
        finally:
            listeners.discard(queue)

    task = asyncio.ensure_future(sending())
    try:
        while True:
            text = await websocket.receive()
            for queue in listeners:
                await queue.put(f"{name}: {text}")
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        note(f"{name} left")


@app.websocket("/private")
async def private():
    if websocket.args.get("token") != "secret":
        abort(401)
    await websocket.accept()
    await websocket.send("welcome")
    await websocket.close(4001, "that is all")
