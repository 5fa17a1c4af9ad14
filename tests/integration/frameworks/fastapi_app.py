"""An ordinary FastAPI app; only `everybody` knows of the bus."""

import asyncio
import hashlib
import os
import threading
from collections import defaultdict
from collections.abc import AsyncIterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated

from fastapi import (
    BackgroundTasks,
    Depends,
    FastAPI,
    Form,
    HTTPException,
    Request,
    Response,
    UploadFile,
    WebSocket,
    WebSocketDisconnect,
    WebSocketException,
)
from fastapi.responses import PlainTextResponse, RedirectResponse, StreamingResponse
from fastapi.sse import EventSourceResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel
from starlette.middleware.sessions import SessionMiddleware

import asgibus

NOTES = []
gates = defaultdict(threading.Event)


@asynccontextmanager
async def lifespan(app):
    yield {"greeting": "hello from start-up", "shelf": {"1": "spade"}}
    print("good-bye from shut-down", flush=True)  # noqa: T201 - the log is where a test sees it


app = FastAPI(lifespan=lifespan, debug=bool(os.environ.get("DEBUG")))
app.add_middleware(SessionMiddleware, secret_key="of the tests")
app.mount("/static", StaticFiles(directory=Path(__file__).parent / "public"))


class Item(BaseModel):
    name: str
    price: float


def shelf(request: Request):
    return request.state.shelf


async def gate(name: str) -> None:
    while not gates[name].is_set():  # noqa: ASYNC110 - it is set in another thread
        await asyncio.sleep(0.01)


@app.api_route("/", methods=["GET", "HEAD"])
async def seen(request: Request, response: Response) -> dict:
    response.set_cookie("a", "1")
    response.set_cookie("b", "2")
    return {
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


@app.post("/form")
async def form(a: Annotated[list[str], Form()], word: Annotated[str, Form(alias="ü")]) -> dict:
    return {"a": a, "ü": [word]}


@app.post("/upload")
def upload(title: Annotated[str, Form()], file: UploadFile) -> dict:  # runs in a thread
    content = file.file.read()
    return {
        "title": title,
        "name": file.filename,
        "size": len(content),
        "digest": hashlib.sha256(content).hexdigest(),
    }


@app.post("/raw", response_class=PlainTextResponse)
async def raw(request: Request) -> str:
    digest = hashlib.sha256()
    async for part in request.stream():
        digest.update(part)
    return digest.hexdigest()


@app.get("/stream/{name}")
async def stream(name: str) -> StreamingResponse:
    async def parts():
        try:
            yield "first\n"
            await gate(name)
            yield "second\n"
        finally:
            NOTES.append(f"{name} over")

    return StreamingResponse(parts(), media_type="text/plain")


@app.get("/go/{name}", response_class=PlainTextResponse)
def go(name: str) -> str:
    gates[name].set()
    return "gone"


@app.get("/large")
def large() -> StreamingResponse:
    return StreamingResponse((b"%d\n" % number * 1000 for number in range(1000)), media_type="text/plain")


@app.get("/events/{name}", response_class=EventSourceResponse)
async def events(name: str) -> AsyncIterable[str]:
    try:
        number = 0
        while True:
            yield f"tick {number}"
            number += 1
            await asyncio.sleep(0.02)
    finally:
        NOTES.append(f"{name} left")


@app.get("/later/{name}", response_class=PlainTextResponse)
async def later(name: str, tasks: BackgroundTasks) -> str:
    async def work() -> None:
        await gate(name)
        NOTES.append(f"{name} done")

    tasks.add_task(work)
    return "soon"


@app.get("/noted")
async def noted() -> list[str]:
    return NOTES


@app.get("/error")
def error() -> None:
    raise ArithmeticError("as asked")


@app.get("/broken/{name}")
async def broken(name: str) -> StreamingResponse:
    async def parts():
        yield "some\n"
        await gate(name)
        raise ArithmeticError("as asked")

    return StreamingResponse(parts(), media_type="text/plain")


@app.get("/teapot")
def teapot() -> None:
    raise HTTPException(418, "short and stout")


@app.get("/visits", response_class=PlainTextResponse)
def visits(request: Request) -> str:
    request.session["visits"] = request.session.get("visits", 0) + 1
    return str(request.session["visits"])


@app.get("/old")
def old(request: Request) -> RedirectResponse:
    return RedirectResponse(request.url_for("fruit", name="grün").include_query_params(q="ü"), 303)


@app.get("/äpfel/{name}", name="fruit")
def fruit(name: str, q: str | None = None) -> dict:
    return {"name": name, "q": q}


@app.get("/empty", status_code=204)
def empty() -> None:
    return None


@app.post("/items", status_code=201)
async def create(item: Item, shelf: Annotated[dict, Depends(shelf)]) -> dict:
    shelf[str(len(shelf) + 1)] = item.name
    return {"number": len(shelf), "item": item.model_dump()}


@app.get("/items/{number}")
def read(number: int, shelf: Annotated[dict, Depends(shelf)]) -> str:
    if str(number) not in shelf:
        raise HTTPException(404, "not on the shelf")
    return shelf[str(number)]


@app.websocket("/talk/{name}")
async def talk(websocket: WebSocket, name: str) -> None:
    offered = websocket.scope["subprotocols"]
    await websocket.accept(subprotocol="v1" if "v1" in offered else None, headers=[(b"x-room", name.encode())])
    await websocket.send_json({"name": name, "greeting": websocket.state.greeting, "cookies": websocket.cookies})
    try:
        while True:
            message = await websocket.receive()
            if message["type"] == "websocket.disconnect":
                raise WebSocketDisconnect(message["code"], message.get("reason"))
            if message.get("text") == "close":
                raise WebSocketException(4001, "as asked")
            if message.get("text") == "raise":
                raise ArithmeticError("as asked")
            if message.get("text") is not None:
                await websocket.send_text(message["text"][::-1])
            else:
                await websocket.send_bytes(message["bytes"])
    except WebSocketDisconnect as gone:
        NOTES.append(f"{name} left: {gone.code} {gone.reason}".rstrip())


@app.websocket("/everybody")
async def everybody(websocket: WebSocket) -> None:
    await websocket.accept()
    connection = asgibus.connection(websocket.scope)
    await connection.group_add("everybody")
    async for text in websocket.iter_text():
        await connection.group_send("everybody", {"type": "websocket.send", "text": text})


@app.websocket("/private")
async def private(websocket: WebSocket) -> None:
    raise HTTPException(403, "members only")


@app.websocket("/closed")
async def closed(websocket: WebSocket) -> None:
    raise WebSocketException(1008)
