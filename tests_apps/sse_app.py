"""Streams of events with sse-starlette."""

import asyncio
from pathlib import Path

from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.applications import Starlette
from starlette.responses import HTMLResponse
from starlette.routing import Route


def note(text):
    with Path("notes").open("a") as notes:
        notes.write(f"{text}\n")


async def count(request):
    """Send ten numbers; a browser that reconnects gets the numbers after its last one."""
    begin = int(request.headers.get("last-event-id", 0)) + 1

    async def numbers():
        for number in range(begin, 11):
            yield {"id": str(number), "event": "number", "data": f"number {number}\nand a second line", "retry": 100}
            if number == 5 and begin == 1:
                return  # the browser reconnects for the other numbers

    return EventSourceResponse(numbers())


async def clock(request):
    name = request.path_params["name"]

    async def ticks():
        number = 0
        try:
            while True:
                yield ServerSentEvent(str(number), id=str(number))
                number += 1
                await asyncio.sleep(0.05)
        except asyncio.CancelledError:
            note(f"{name} cancelled")
            raise
        finally:
            note(f"{name} cleaned up")

    async def left(message):
        note(f"{name}: {message['type']}")

    return EventSourceResponse(ticks(), ping=15, client_close_handler_callable=left)


async def home(request):
    return HTMLResponse("<!doctype html><title>Events</title><link rel=icon href=data:,>")


app = Starlette(routes=[Route("/", home), Route("/count", count), Route("/clock/{name}", clock)])
