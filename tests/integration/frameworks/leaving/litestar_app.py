"""Litestar: handlers, background tasks, a stream, a WebSocket handler and a listener."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

from litestar import Litestar, MediaType, Request, Response, WebSocket, get, post, websocket, websocket_listener
from litestar.background_tasks import BackgroundTask
from litestar.exceptions import WebSocketDisconnect
from litestar.logging import LoggingConfig
from litestar.response import Stream

from frameworks.leaving.notes import PARTS, STEP, note, noting, released


@get("/ready", media_type=MediaType.TEXT)
async def ready() -> str:
    return "ready"


@post("/job/{name:str}", status_code=200, media_type=MediaType.TEXT)
async def work(name: str) -> Response[str]:
    with noting(name):
        await released(name)
    return Response("worked", background=BackgroundTask(note, name, "background"))


@post("/upload/{name:str}", media_type=MediaType.TEXT)
async def upload(name: str, request: Request[Any, Any, Any]) -> str:
    with noting(name):
        return str(len(await request.body()))


@get("/stream/{name:str}")
async def stream(name: str) -> Stream:
    async def parts() -> AsyncGenerator[bytes, None]:
        with noting(name):
            for _ in range(PARTS):
                yield b"data: part\n\n"
                await asyncio.sleep(STEP)

    return Stream(parts(), media_type="text/event-stream")


@websocket("/socket/{name:str}")
async def socket(socket: WebSocket[Any, Any, Any], name: str) -> None:
    with noting(name):
        await socket.accept()
        try:
            while True:
                text = await socket.receive_text()
                if text == "late":
                    await released(name)
                    await socket.send_text("late")
                elif text == "close":
                    await socket.close(4001)
                    await socket.send_text("behind the close")
        except WebSocketDisconnect as gone:
            note(name, f"disconnected {gone.code}")


@websocket_listener("/listener/{name:str}")
async def listener(data: str, name: str) -> str:
    with noting(name):
        if data == "late":
            await released(name)
    return data


app = Litestar(
    [ready, work, upload, stream, socket, listener],
    logging_config=LoggingConfig(log_exceptions="always"),
)
