"""The web app of the answers: it puts a question on the channel `answers`, and sends the stream of an answer.

A writer (writer.py) gets the question, and appends the answer to the stream. A user who knows the name of an answer may
read and stop the answer, on any device. Names cannot be guessed.
"""

import re
import secrets
import time
from pathlib import Path
from typing import Annotated

from fastapi import Body, FastAPI, HTTPException, Response
from fastapi import Path as PathParameter
from fastapi.responses import FileResponse

from asgibus.fastapi import BusDep, StreamResponse
from asgibus.layers import ChannelFull
from asgibus.layers.streams import StreamState

NAME = r"^[0-9]{1,12}-[A-Za-z0-9_-]{16}$"  # of an answer
JOB_SECONDS = 60  # for which a question waits for a writer: `asgi-worker --expiry`

app = FastAPI()

Question = Annotated[str, Body(embed=True, min_length=1, max_length=500)]
Answer = Annotated[str, PathParameter(pattern=NAME)]


@app.post("/ask")
async def ask(question: Question, bus: BusDep) -> dict[str, str]:
    answer = f"{int(time.time())}-{secrets.token_urlsafe(12)}"
    try:
        await bus.layer.send("answers", {"type": "answer.write", "answer": answer, "question": question})
    except ChannelFull:
        raise HTTPException(503, "Too many questions are waiting.") from None
    return {"answer": answer}


@app.get("/answers/{answer}")
async def read(answer: str, bus: BusDep) -> Response:
    # An EventSource can read an event, but not the status of a response.
    gone = Response("event: gone\ndata:\n\n", media_type="text/event-stream")
    if not re.match(NAME, answer):
        return gone
    stream = bus.layer.stream(f"answer.{answer}")
    asked_at = int(answer.partition("-")[0])
    if time.time() - asked_at > JOB_SECONDS and (await stream.info()).state is StreamState.ABSENT:
        return gone  # nobody will write it any more
    return StreamResponse(stream)


@app.post("/answers/{answer}/stop", status_code=204)
async def stop(answer: Answer, bus: BusDep) -> None:
    await bus.layer.stream(f"answer.{answer}").cancel()


@app.get("/")
@app.get("/{answer}")
async def page() -> FileResponse:
    return FileResponse(Path(__file__).with_name("page.html"), headers={"cache-control": "no-cache"})
