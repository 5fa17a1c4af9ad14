"""Starlette: endpoints, a background task, a stream, and a WebSocket with its exception."""

import asyncio

from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocketDisconnect

from frameworks.leaving.notes import PARTS, STEP, note, noting, released


class Passing(BaseHTTPMiddleware):
    async def dispatch(self, request, call_next):
        return await call_next(request)


async def ready(request):
    return PlainTextResponse("ready")


async def work(request):
    name = request.path_params["name"]
    with noting(name):
        await released(name)
    return PlainTextResponse("worked", background=BackgroundTask(note, name, "background"))


async def upload(request):
    with noting(request.path_params["name"]):
        await request.body()
    return PlainTextResponse("uploaded")


async def stream(request):
    name = request.path_params["name"]

    async def parts():
        with noting(name):
            for _ in range(PARTS):
                yield b"data: part\n\n"
                await asyncio.sleep(STEP)

    return StreamingResponse(parts(), media_type="text/event-stream")


async def socket(websocket):
    name = websocket.path_params["name"]
    with noting(name):
        await websocket.accept()
        try:
            while True:
                text = await websocket.receive_text()
                if text == "late":
                    await released(name)
                    await websocket.send_text("late")
                elif text == "close":
                    await websocket.close(4001)
                    await websocket.send_text("behind the close")
        except WebSocketDisconnect as gone:
            note(name, f"disconnected {gone.code}")


routes = [
    Route("/ready", ready),
    Route("/job/{name}", work, methods=["POST"]),
    Route("/upload/{name}", upload, methods=["POST"]),
    Route("/stream/{name}", stream),
    WebSocketRoute("/socket/{name}", socket),
]
app = Starlette(routes=routes)
within = Starlette(routes=routes, middleware=[Middleware(Passing)])
