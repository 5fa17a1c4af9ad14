"""A chat and an answer that is written word by word, as people write them with FastAPI.

`ConnectionManager` is that of FastAPI's tutorial, with rooms. Its state is in the process, so the demo starts the
interface server with `--affinity`: all sockets of a room are in one worker. No code of the chat
or the answer handles workers that die or are replaced. Only `news`, which sends the page the actions of the demo, uses
asgibus.
"""

import asyncio
import os
from collections import defaultdict
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Literal

from fastapi import FastAPI, Header, WebSocket, WebSocketDisconnect
from fastapi.responses import FileResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent

import asgibus

HERE = Path(__file__).parent
GROUP = "never_drop"  # every open page is a member; the demo announces its actions there
WORD_SECONDS = 0.15
ANSWER = """
Once a web server and an app were the same process. When the app was deployed, the server went with it, and so did
every socket: chats blinked, dashboards froze, and answers like this one stopped in the middle of a word. People grew
used to it. They wrote code that connects again, code that remembers where it was, and code that hides the gap. Then
somebody put the sockets in one process and the app in another, with a bus between them. Now the app may come and go.
A worker is killed while it writes this sentence, and another one writes the rest, because the bus asks it for the
words after the last one that you have seen. The color changes; the text does not. Even the process that holds the
sockets is replaced while you read: it hands them to its successor, one file descriptor after another, and your
browser never learns of it. This is ordinary FastAPI. You deploy whenever you like.
"""
WORDS = ANSWER.split()

app = FastAPI()


class ConnectionManager:
    """The sockets of each room in this process."""

    def __init__(self) -> None:
        self.rooms: defaultdict[str, list[WebSocket]] = defaultdict(list)

    async def connect(self, room: str, websocket: WebSocket) -> None:
        await websocket.accept()
        self.rooms[room].append(websocket)

    def disconnect(self, room: str, websocket: WebSocket) -> None:
        self.rooms[room].remove(websocket)

    async def broadcast(self, room: str, text: str) -> None:
        for websocket in list(self.rooms[room]):
            await websocket.send_text(text)


manager = ConnectionManager()


@app.websocket("/rooms/{room}/{name}")
async def chat(websocket: WebSocket, room: str, name: str) -> None:
    await manager.connect(room, websocket)
    try:
        while True:
            text = await websocket.receive_text()
            await manager.broadcast(room, f"{name}: {text}")
    except WebSocketDisconnect:
        manager.disconnect(room, websocket)
        await manager.broadcast(room, f"{name} left the chat")


@app.get("/answer", response_class=EventSourceResponse)
async def answer(last_event_id: Annotated[int, Header()] = 0) -> AsyncIterator[ServerSentEvent]:
    for number, word in enumerate(WORDS[last_event_id:], last_event_id + 1):
        yield ServerSentEvent(data={"word": word, "worker": os.getpid()}, id=str(number))
        await asyncio.sleep(WORD_SECONDS)
    yield ServerSentEvent(event="end", data={"words": len(WORDS)})


@app.get("/")
async def page() -> FileResponse:
    return FileResponse(HERE / "fastapi.html", headers={"cache-control": "no-cache"})


@app.get("/{name}")
async def part(name: Literal["page.css", "page.js"]) -> FileResponse:
    return FileResponse(HERE / name, headers={"cache-control": "no-cache"})


@app.websocket("/news")
async def news(websocket: WebSocket) -> None:
    await websocket.accept()
    await asgibus.connection(websocket.scope).group_add(GROUP)
    async for _ in websocket.iter_text():
        pass
