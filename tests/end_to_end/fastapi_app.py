"""An ordinary FastAPI app; nothing in it knows of the bus."""

from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import Depends, FastAPI, HTTPException, Request, WebSocket, WebSocketDisconnect
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

LEFT = []


@asynccontextmanager
async def lifespan(app):
    yield {"shelf": {"1": "spade"}}


app = FastAPI(lifespan=lifespan)


class Item(BaseModel):
    name: str
    price: float


def shelf(request: Request):
    return request.state.shelf


@app.post("/items", status_code=201)
async def create(item: Item, shelf: Annotated[dict, Depends(shelf)]) -> dict:
    shelf[str(len(shelf) + 1)] = item.name
    return {"number": len(shelf), "item": item.model_dump()}


@app.get("/items/{number}")
def read(number: int, shelf: Annotated[dict, Depends(shelf)]) -> str:  # runs in a thread
    if str(number) not in shelf:
        raise HTTPException(404, "not on the shelf")
    return shelf[str(number)]


@app.get("/stream")
def stream() -> StreamingResponse:
    return StreamingResponse((f"line {number}\n" for number in range(5000)), media_type="text/plain")


@app.get("/error")
def error() -> None:
    raise ArithmeticError("no such number")


@app.websocket("/ws/{name}")
async def talk(websocket: WebSocket, name: str, loud: bool = False) -> None:
    await websocket.accept()
    try:
        while True:
            text = await websocket.receive_text()
            await websocket.send_json({name: text.upper() if loud else text})
    except WebSocketDisconnect as gone:
        LEFT.append([gone.code, gone.reason])


@app.get("/left")
def left() -> list:
    return LEFT
