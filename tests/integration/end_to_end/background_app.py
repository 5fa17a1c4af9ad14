"""Handles messages by their type, and notes the beginning and the end of each in a file."""

import asyncio
import os
import signal
from pathlib import Path


def note(word, message):
    with Path("notes").open("a") as notes:
        notes.write(f"{word} {message['number']} {os.getpid()}\n")


async def app(scope, receive, send):
    if scope["type"] != "channel":
        raise ValueError(scope["type"])
    message = await receive()
    note("begun", message)
    await asyncio.sleep(message.get("seconds", 0))
    if message["type"] == "poison":
        os.kill(os.getpid(), signal.SIGKILL)
    if message["type"] == "bad":
        raise ArithmeticError("no such number")
    note("done", message)
