"""App for the tests of the supervisor. App and test communicate by files in the working directory."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any


def write(name: str, text: str = "") -> None:
    with Path(name).open("a") as file:
        file.write(text)


def exists(name: str) -> bool:
    return Path(name).exists()


if exists("import-fails"):
    raise ValueError("a new version with a mistake")


async def answer(send: Any, text: str) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": text.encode()})


async def lifespan(receive: Any, send: Any) -> None:
    await receive()
    write("starting")
    while exists("start-up-hangs"):  # noqa: ASYNC110 - the test is another process
        await asyncio.sleep(0.01)
    await send({"type": "lifespan.startup.complete"})
    if exists("crash"):
        await asyncio.sleep(0.2)
        os.kill(os.getpid(), signal.SIGSEGV)
    await receive()
    write("shut-down", f"{os.getpid()}\n")
    await send({"type": "lifespan.shutdown.complete"})


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        await lifespan(receive, send)
    elif scope["path"] == "/stubborn":
        write("held")
        while True:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                continue
    elif scope["path"] == "/environment":
        # The environment of a process that the app starts.
        code = "import os; print([name for name in os.environ if 'CONTROL_FD' in name])"
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=subprocess.PIPE)
        await answer(send, (await process.communicate())[0].decode().strip())
    else:
        await answer(send, str(os.getpid()))
