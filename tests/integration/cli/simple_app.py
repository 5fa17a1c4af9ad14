"""App for the tests of the two commands. App and test communicate by files in the working directory."""

import asyncio
import os
from pathlib import Path
from typing import Any

counts = {"active": 0, "most": 0}


def tell(name: str) -> None:
    Path(name).touch()


def released() -> bool:
    return Path("release").exists()


async def lifespan(receive: Any, send: Any) -> None:
    while True:
        event = await receive()
        await send({"type": event["type"] + ".complete"})
        if event["type"] == "lifespan.shutdown":
            tell("shut-down")
            return


async def answer(send: Any, text: str) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x-pid", b"%d" % os.getpid())]})
    await send({"type": "http.response.body", "body": text.encode()})


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        await lifespan(receive, send)
    elif scope["path"] == "/hold":
        counts["active"] += 1
        counts["most"] = max(counts.values())
        tell(f"held-{scope['query_string'].decode()}")
        try:
            while not released():  # noqa: ASYNC110 - the test is another process
                await asyncio.sleep(0.01)
        finally:
            counts["active"] -= 1
        await answer(send, str(os.getpid()))
    elif scope["path"] == "/stubborn":
        tell("held-")
        while True:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                continue
    elif scope["path"] == "/after":
        await answer(send, "")
        tell("held-")
        while not released():  # noqa: ASYNC110 - the test is another process
            await asyncio.sleep(0.01)
    elif scope["path"] == "/most":
        await answer(send, str(counts["most"]))
    else:
        await answer(send, str(os.getpid()))


def make() -> Any:
    return app


async def start_up_fails(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no database"})
    else:
        await app(scope, receive, send)


async def no_lifespan(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        raise ValueError("only http here")
    await app(scope, receive, send)


not_an_app = 5
