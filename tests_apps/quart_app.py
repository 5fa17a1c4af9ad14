"""WebSockets of Quart: an echo, two tasks on one socket, a broker as in its tutorial, and a refusal."""

import asyncio
from pathlib import Path

from quart import Quart, abort, websocket

app = Quart(__name__)


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


@app.websocket("/both/<name>")
async def both(name):
    async def sending():
        number = 0
        while True:
            await websocket.send(str(number))
            number += 1
            await asyncio.sleep(0.01)

    async def receiving():
        while True:
            note(f"{name} said {await websocket.receive()}")

    try:
        await asyncio.gather(asyncio.create_task(sending()), asyncio.create_task(receiving()))
    finally:
        note(f"{name} left")


@app.websocket("/private")
async def private():
    if websocket.args.get("token") != "secret":
        abort(401)
    await websocket.accept()
    await websocket.send("welcome")
    await websocket.close(4001, "that is all")
