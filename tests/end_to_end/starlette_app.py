"""An ordinary Starlette app; nothing in it knows of the bus."""

import asyncio
import hashlib
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path

from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, StreamingResponse
from starlette.routing import Route, WebSocketRoute

LOG = []


@asynccontextmanager
async def lifespan(app):
    with tempfile.NamedTemporaryFile(suffix=".bin") as file:
        file.write(bytes(range(256)) * 4096)
        file.flush()
        yield {"greeting": "hello from start-up", "file": file.name, "visits": []}


async def index(request):
    request.state.visits.append(request.client.host)
    return JSONResponse(
        {
            "greeting": request.state.greeting,
            "visits": len(request.state.visits),
            "query": dict(request.query_params),
            "url": str(request.url),
            "cookies": request.cookies,
        }
    )


async def post_json(request):
    response = JSONResponse({"got": await request.json(), "type": request.headers["content-type"]}, 201)
    response.set_cookie("a", "1")
    response.set_cookie("b", "2")
    return response


async def upload(request):
    digest = hashlib.sha256()
    async for part in request.stream():
        digest.update(part)
    return PlainTextResponse(digest.hexdigest())


async def stream(request):
    async def parts():
        for number in range(100):
            yield f"{number}\n" * 1000
            await asyncio.sleep(0)

    return StreamingResponse(parts(), media_type="text/plain")


async def download(request):
    return FileResponse(request.state.file)


async def download_gone(request):
    """A file that is removed between the look at it and the sending."""
    with tempfile.NamedTemporaryFile() as file:
        status = Path(file.name).stat()  # noqa: ASYNC240  # apps do it
    return FileResponse(file.name, stat_result=status)


async def later(request):
    async def task():
        LOG.append("done behind the response")

    return PlainTextResponse("soon", background=BackgroundTask(task))


async def log(request):
    return JSONResponse(LOG)


async def wait(request):
    """Long polling: wait until the client is gone."""
    while not await request.is_disconnected():  # noqa: ASYNC110  # apps do it
        await asyncio.sleep(0.01)
    LOG.append("the poller is gone")
    return PlainTextResponse("to nobody")


async def error(request):
    raise ArithmeticError("no such number")


async def teapot(request):
    raise HTTPException(418, "short and stout")


async def room(websocket):
    await websocket.accept(subprotocol="v1" if "v1" in websocket.scope["subprotocols"] else None)
    await websocket.send_json({"room": websocket.path_params["name"], "greeting": websocket.state.greeting})
    async for text in websocket.iter_text():
        await websocket.send_text(text[::-1])
    LOG.append("room left")


async def private(websocket):
    await websocket.send_denial_response(PlainTextResponse("members only", 403))


async def stamp(request, call_next):
    response = await call_next(request)
    response.headers["x-stamp"] = "1"
    return response


STAMPED = [Middleware(BaseHTTPMiddleware, dispatch=stamp)]

app = Starlette(
    routes=[
        Route("/", index),
        Route("/json", post_json, methods=["POST"], middleware=STAMPED),
        Route("/upload", upload, methods=["POST"], middleware=STAMPED),
        Route("/stream", stream, middleware=STAMPED),
        Route("/download", download),
        Route("/download-gone", download_gone),
        Route("/later", later),
        Route("/log", log),
        Route("/wait", wait),
        Route("/error", error),
        Route("/teapot", teapot),
        WebSocketRoute("/room/{name}", room),
        WebSocketRoute("/private", private),
    ],
    middleware=[Middleware(GZipMiddleware, minimum_size=500)],
    lifespan=lifespan,
)
