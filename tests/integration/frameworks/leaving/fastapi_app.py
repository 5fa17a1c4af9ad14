"""FastAPI: a dependency that commits or rolls back, background tasks, a stream, and a WebSocket."""

import asyncio
from typing import Annotated

from fastapi import BackgroundTasks, Depends, FastAPI, Request, UploadFile, WebSocket, WebSocketDisconnect
from fastapi.responses import PlainTextResponse, StreamingResponse

from frameworks.leaving.notes import PARTS, STEP, note, noting, released

app = FastAPI()


async def session(name: str):
    try:
        yield name
    except BaseException as error:
        note(name, f"rollback {type(error).__name__}")
        raise
    else:
        note(name, "commit")


@app.get("/ready")
async def ready():
    return "ready"


@app.post("/job/{name}")
async def work(name: Annotated[str, Depends(session)], tasks: BackgroundTasks):
    with noting(name):
        await released(name)
        tasks.add_task(note, name, "mail sent")
    return PlainTextResponse("worked", background=tasks)


@app.post("/upload/{name}")
async def upload(name: Annotated[str, Depends(session)], request: Request):
    with noting(name):
        await request.body()


@app.post("/file/{name}")
async def file(name: Annotated[str, Depends(session)], file: UploadFile):
    with noting(name):
        await file.read()


@app.get("/stream/{name}")
async def stream(name: str):
    async def parts():
        with noting(name):
            for _ in range(PARTS):
                yield b"data: part\n\n"
                await asyncio.sleep(STEP)

    return StreamingResponse(parts(), media_type="text/event-stream")


@app.websocket("/socket/{name}")
async def socket(websocket: WebSocket, name: Annotated[str, Depends(session)]):
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
