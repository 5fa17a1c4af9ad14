"""Quart, which cancels a handler at a disconnect."""

import asyncio

from quart import Quart, request, websocket

from frameworks.leaving.notes import PARTS, STEP, note, noting, released

app = Quart(__name__)


@app.get("/ready")
async def ready():
    return "ready"


@app.post("/job/<name>")
async def work(name):
    with noting(name):
        await released(name)
    return "worked"


@app.post("/upload/<name>")
async def upload(name):
    with noting(name):
        return str(len(await request.get_data()))


@app.get("/stream/<name>")
async def stream(name):
    async def parts():
        with noting(name):
            for _ in range(PARTS):
                yield b"data: part\n\n"
                await asyncio.sleep(STEP)

    return parts(), {"content-type": "text/event-stream"}


@app.websocket("/socket/<name>")
async def socket(name):
    with noting(name):
        while True:
            text = await websocket.receive()
            if text == "late":
                await asyncio.shield(released(name))
                await websocket.send("late")
            elif text == "close":
                await websocket.close(4001)
                note(name, "closed")
                await websocket.send("behind the close")
