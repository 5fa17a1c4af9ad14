"""Answers in the framings of examples/answers, written in this process while they are read."""

import asyncio
import sys
from contextlib import suppress
from pathlib import Path

from fastapi import FastAPI, Request

from asgibus.fastapi import BusDep, StreamResponse
from asgibus.layers.streams import WriterFenced

sys.path.append(str(Path(__file__).parents[1] / "examples" / "answers"))
from framings import AG_UI, UI_MESSAGES, ag_ui, ui_messages

app = FastAPI()
tasks = set()


async def words(text):
    for word in text.split(" "):
        await asyncio.sleep(1 if word == "wait" else 0.01)
        yield f"{word} "
        if word == "fail":
            raise ValueError(word)


async def write(stream, entries):
    with suppress(ValueError, WriterFenced):
        async with stream.writer(restart=True) as out:
            async for entry in entries:
                await out.append(entry)


def start(stream, entries):
    """Write a stream, in place of the task that may be writing it."""
    task = asyncio.create_task(write(stream, entries))
    tasks.add(task)
    task.add_done_callback(tasks.discard)


@app.post("/api/chat")
async def chat(request: Request, bus: BusDep):
    asked = await request.json()
    stream = bus.layer.stream(f"chat.{asked['id']}")
    start(stream, ui_messages("answer-1", words(asked["messages"][-1]["parts"][0]["text"])))
    return StreamResponse(stream, **UI_MESSAGES)


@app.post("/api/chat/{chat}/again")
async def again(chat: str, bus: BusDep):
    start(bus.layer.stream(f"chat.{chat}"), ui_messages("answer-2", words("Begun anew.")))


@app.get("/api/chat/{chat}/stream")
async def resumed(chat: str, bus: BusDep):
    return StreamResponse(bus.layer.stream(f"chat.{chat}"), **UI_MESSAGES)


@app.post("/agent")
async def agent(request: Request, bus: BusDep):
    asked = await request.json()
    thread, run = asked["threadId"], asked["runId"]
    stream = bus.layer.stream(f"run.{run}")
    start(stream, ag_ui("answer-1", words(asked["messages"][-1]["content"]), thread, run))
    return StreamResponse(stream, **AG_UI)
