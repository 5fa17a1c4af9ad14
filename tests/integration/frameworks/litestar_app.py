"""An ordinary Litestar app; only `everybody` knows of the bus."""

import asyncio
import hashlib
import os
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

from litestar import Litestar, MediaType, Request, Response, WebSocket, get, post, websocket
from litestar.background_tasks import BackgroundTask
from litestar.datastructures import Cookie, UploadFile
from litestar.enums import RequestEncodingType
from litestar.exceptions import HTTPException, NotAuthorizedException, WebSocketDisconnect
from litestar.logging import LoggingConfig
from litestar.middleware.session.client_side import CookieBackendConfig
from litestar.params import Body
from litestar.response import Redirect, ServerSentEvent, Stream
from litestar.static_files import create_static_files_router

import asgibus

NOTES: list[str] = []
gates: dict[str, asyncio.Event] = defaultdict(asyncio.Event)
UPLOAD = Body(media_type=RequestEncodingType.MULTI_PART)


@asynccontextmanager
async def lifespan(app: Litestar) -> AsyncIterator[None]:
    app.state.greeting = "hello from start-up"
    yield
    print("good-bye from shut-down", flush=True)  # noqa: T201 - the log is where a test sees it


@get("/")
async def seen(request: Request[Any, Any, Any]) -> Response[dict[str, Any]]:
    return Response(
        {
            "method": request.method,
            "path": request.url.path,
            "root_path": request.scope["root_path"],
            "scheme": request.url.scheme,
            "host": request.url.netloc,
            "client": request.client.host if request.client else None,
            "query": dict(request.query_params.items()),
            "greeting": request.app.state.greeting,
            "cookies": request.cookies,
        },
        cookies=[Cookie("a", value="1"), Cookie("b", value="2")],
    )


@post("/form", status_code=200)
async def form(request: Request[Any, Any, Any]) -> dict[str, list[str]]:
    fields = await request.form()
    return {key: fields.getall(key) for key in fields}


@post("/upload", status_code=200, request_max_body_size=20_000_000)
async def upload(data: Annotated[dict[str, Any], UPLOAD]) -> dict[str, Any]:
    file: UploadFile = data["file"]
    content = await file.read()
    return {
        "title": data["title"],
        "name": file.filename,
        "size": len(content),
        "digest": hashlib.sha256(content).hexdigest(),
    }


@post("/raw", status_code=200, media_type=MediaType.TEXT)
async def raw(request: Request[Any, Any, Any]) -> str:
    digest = hashlib.sha256()
    async for part in request.stream():
        digest.update(part)
    return digest.hexdigest()


@get("/stream/{name:str}")
async def stream(name: str) -> Stream:
    async def parts() -> AsyncIterator[str]:
        try:
            yield "first\n"
            await gates[name].wait()
            yield "second\n"
        finally:
            NOTES.append(f"{name} over")

    return Stream(parts(), media_type="text/plain")


@get("/go/{name:str}", media_type=MediaType.TEXT)
async def go(name: str) -> str:
    gates[name].set()
    return "gone"


@get("/large")
async def large() -> Stream:
    return Stream((b"%d\n" % number * 1000 for number in range(1000)), media_type="text/plain")


@get("/events/{name:str}")
async def events(name: str) -> ServerSentEvent:
    async def ticks() -> AsyncIterator[str]:
        try:
            number = 0
            while True:
                yield f"tick {number}"
                number += 1
                await asyncio.sleep(0.02)
        finally:
            NOTES.append(f"{name} left")

    return ServerSentEvent(ticks())


@get("/later/{name:str}", media_type=MediaType.TEXT)
async def later(name: str) -> Response[str]:
    async def work() -> None:
        await gates[name].wait()
        NOTES.append(f"{name} done")

    return Response("soon", background=BackgroundTask(work))


@get("/noted")
async def noted() -> list[str]:
    return NOTES


@get("/error")
async def error() -> None:
    raise ArithmeticError("as asked")


@get("/broken/{name:str}")
async def broken(name: str) -> Stream:
    async def parts() -> AsyncIterator[str]:
        yield "some\n"
        await gates[name].wait()
        raise ArithmeticError("as asked")

    return Stream(parts(), media_type="text/plain")


@get("/teapot")
async def teapot() -> None:
    raise HTTPException("short and stout", status_code=418)


@get("/visits", media_type=MediaType.TEXT, sync_to_thread=True)
def visits(request: Request[Any, Any, Any]) -> str:
    request.session["visits"] = request.session.get("visits", 0) + 1
    return str(request.session["visits"])


@get("/old", status_code=303)
async def old(request: Request[Any, Any, Any]) -> Redirect:
    path = request.app.route_reverse("fruit", kind="grün")
    return Redirect(f"{request.scope['root_path']}{path}?q=ü", status_code=303)


@get("/äpfel/{kind:str}", name="fruit")
async def fruit(kind: str, q: str | None = None) -> dict[str, str | None]:
    return {"name": kind, "q": q}


@get("/empty", status_code=204)
async def empty() -> None:
    return None


@websocket("/talk/{name:str}")
async def talk(socket: WebSocket[Any, Any, Any], name: str) -> None:
    offered = socket.scope["subprotocols"]
    await socket.accept(subprotocols="v1" if "v1" in offered else None, headers={"x-room": name})
    await socket.send_json({"name": name, "greeting": socket.app.state.greeting, "cookies": socket.cookies})
    try:
        while True:
            message = await socket.receive()
            if message["type"] == "websocket.disconnect":
                raise WebSocketDisconnect(code=message["code"], detail=message.get("reason") or "")
            if message.get("text") == "close":
                await socket.close(4001, "as asked")
                return
            if message.get("text") == "raise":
                raise ArithmeticError("as asked")
            if message.get("text") is not None:
                await socket.send_text(message["text"][::-1])
            else:
                await socket.send_bytes(message["bytes"])
    except WebSocketDisconnect as gone:
        NOTES.append(f"{name} left: {gone.code} {gone.detail}".rstrip())


@websocket("/everybody")
async def everybody(socket: WebSocket[Any, Any, Any]) -> None:
    await socket.accept()
    connection = asgibus.connection(socket.scope)
    await connection.group_add("everybody")
    async for text in socket.iter_data():
        await connection.group_send("everybody", {"type": "websocket.send", "text": text})


@websocket("/private")
async def private(socket: WebSocket[Any, Any, Any]) -> None:
    raise NotAuthorizedException("members only")


@websocket("/closed")
async def closed(socket: WebSocket[Any, Any, Any]) -> None:
    await socket.close(1008)


app = Litestar(
    [
        *(seen, form, upload, raw, stream, go, large, events, later, noted, error, broken, teapot),
        *(visits, old, fruit, empty, talk, everybody, private, closed),
        create_static_files_router("/static", directories=[Path(__file__).parent / "public"]),
    ],
    lifespan=[lifespan],
    middleware=[CookieBackendConfig(secret=b"sixteen of bytes").middleware],
    logging_config=LoggingConfig(log_exceptions="always", disable_stack_trace={404, 405, 418}),
    debug=bool(os.environ.get("DEBUG")),
)
