"""An ordinary Starlette app; only `everybody` knows of the bus."""

import asyncio
import hashlib
import os
import tempfile
from collections import defaultdict
from contextlib import asynccontextmanager
from pathlib import Path

from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, RedirectResponse, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.websockets import WebSocketDisconnect

import asgibus

PUBLIC = Path(__file__).parent / "public"
NOTES = []
gates = defaultdict(asyncio.Event)


@asynccontextmanager
async def lifespan(app):
    yield {"greeting": "hello from start-up"}
    print("good-bye from shut-down", flush=True)  # noqa: T201 - the log is where a test sees it


async def seen(request):
    response = JSONResponse(
        {
            "method": request.method,
            "path": request.url.path,
            "root_path": request.scope["root_path"],
            "scheme": request.url.scheme,
            "host": request.url.netloc,
            "client": request.client.host,
            "query": dict(request.query_params),
            "greeting": request.state.greeting,
            "cookies": request.cookies,
        }
    )
    response.set_cookie("a", "1")
    response.set_cookie("b", "2")
    return response


async def form(request):
    async with request.form() as fields:
        return JSONResponse({key: fields.getlist(key) for key in fields})


async def upload(request):
    async with request.form() as fields:
        file = fields["file"]
        content = await file.read()
        return JSONResponse(
            {
                "title": fields["title"],
                "name": file.filename,
                "size": len(content),
                "digest": hashlib.sha256(content).hexdigest(),
            }
        )


async def raw(request):
    digest = hashlib.sha256()
    async for part in request.stream():
        digest.update(part)
    return PlainTextResponse(digest.hexdigest())


async def stream(request):
    async def parts():
        try:
            yield "first\n"
            await gates[request.path_params["name"]].wait()
            yield "second\n"
        finally:
            NOTES.append(f"{request.path_params['name']} over")

    return StreamingResponse(parts(), media_type="text/plain")


async def go(request):
    gates[request.path_params["name"]].set()
    return PlainTextResponse("gone")


async def large(request):
    return StreamingResponse((b"%d\n" % number * 1000 for number in range(1000)), media_type="text/plain")


async def events(request):
    name = request.path_params["name"]

    async def ticks():
        try:
            number = 0
            while True:
                yield f"id: {number}\ndata: tick {number}\n\n"
                number += 1
                await asyncio.sleep(0.02)
        finally:
            NOTES.append(f"{name} left")

    return StreamingResponse(ticks(), media_type="text/event-stream", headers={"cache-control": "no-cache"})


async def later(request):
    name = request.path_params["name"]

    async def work():
        await gates[name].wait()
        NOTES.append(f"{name} done")

    return PlainTextResponse("soon", background=BackgroundTask(work))


async def noted(request):
    return JSONResponse(NOTES)


async def gone(request):
    """Respond with a file that is removed between `stat` and the sending."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(b"content")
        file.flush()
        status = Path(file.name).stat()  # noqa: ASYNC240 - apps do it
    return FileResponse(file.name, stat_result=status)


async def wait(request):
    """Wait as a long poll does, until the client disconnects."""
    while not await request.is_disconnected():  # noqa: ASYNC110 - apps do it
        await asyncio.sleep(0.01)
    NOTES.append(f"{request.path_params['name']} left")
    return PlainTextResponse("to nobody")


async def error(request):
    raise ArithmeticError("as asked")


async def broken(request):
    async def parts():
        yield "some\n"
        await gates[request.path_params["name"]].wait()
        raise ArithmeticError("as asked")

    return StreamingResponse(parts(), media_type="text/plain")


async def teapot(request):
    raise HTTPException(418, "short and stout")


async def visits(request):
    request.session["visits"] = request.session.get("visits", 0) + 1
    return PlainTextResponse(str(request.session["visits"]))


async def old(request):
    return RedirectResponse(request.url_for("fruit", name="grün").include_query_params(q="ü"), 303)


async def fruit(request):
    return JSONResponse({"name": request.path_params["name"], "q": request.query_params.get("q")})


async def empty(request):
    return PlainTextResponse(status_code=204)


async def talk(websocket):
    name = websocket.path_params["name"]
    offered = websocket.scope["subprotocols"]
    await websocket.accept(subprotocol="v1" if "v1" in offered else None, headers=[(b"x-room", name.encode())])
    await websocket.send_json({"name": name, "greeting": websocket.state.greeting, "cookies": websocket.cookies})
    try:
        while True:
            message = await websocket.receive()
            if message["type"] == "websocket.disconnect":
                raise WebSocketDisconnect(message["code"], message.get("reason"))
            if message.get("text") == "close":
                await websocket.close(4001, "as asked")
                return
            if message.get("text") == "raise":
                raise ArithmeticError("as asked")
            if message.get("text") is not None:
                await websocket.send_text(message["text"][::-1])
            else:
                await websocket.send_bytes(message["bytes"])
    except WebSocketDisconnect as gone:
        NOTES.append(f"{name} left: {gone.code} {gone.reason}".rstrip())


async def everybody(websocket):
    await websocket.accept()
    connection = asgibus.connection(websocket.scope)
    await connection.group_add("everybody")
    async for text in websocket.iter_text():
        await connection.group_send("everybody", {"type": "websocket.send", "text": text})


async def private(websocket):
    await websocket.send_denial_response(PlainTextResponse("members only", 403))


async def closed(websocket):
    await websocket.close()


async def stamp(request, call_next):
    response = await call_next(request)
    response.headers["x-stamp"] = "1"
    return response


STAMPED = [Middleware(BaseHTTPMiddleware, dispatch=stamp)]

app = Starlette(
    debug=bool(os.environ.get("DEBUG")),
    routes=[
        Route("/", seen),
        Route("/form", form, methods=["POST"], middleware=STAMPED),
        Route("/upload", upload, methods=["POST"]),
        Route("/raw", raw, methods=["POST"], middleware=STAMPED),
        Route("/stream/{name}", stream, middleware=STAMPED),
        Route("/go/{name}", go),
        Route("/large", large, middleware=[Middleware(GZipMiddleware)]),
        Route("/events/{name}", events),
        Route("/later/{name}", later),
        Route("/noted", noted),
        Route("/gone", gone),
        Route("/wait/{name}", wait),
        Route("/error", error),
        Route("/broken/{name}", broken),
        Route("/teapot", teapot),
        Route("/visits", visits),
        Route("/old", old),
        Route("/äpfel/{name}", fruit, name="fruit"),
        Route("/empty", empty),
        Mount("/static", StaticFiles(directory=PUBLIC)),
        WebSocketRoute("/talk/{name}", talk),
        WebSocketRoute("/everybody", everybody),
        WebSocketRoute("/private", private),
        WebSocketRoute("/closed", closed),
    ],
    middleware=[Middleware(SessionMiddleware, secret_key="of the tests")],
    lifespan=lifespan,
)
