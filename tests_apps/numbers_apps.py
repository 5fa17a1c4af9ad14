"""Event streams of numbers that continue behind the header Last-Event-ID, each written as its framework shows it."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable
from typing import Annotated

import fastapi
import fastapi.sse
import litestar
from litestar.response import ServerSentEvent, ServerSentEventMessage
from sse_starlette import EventSourceResponse
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse
from starlette.routing import Route

PAUSE = 0.02
HOME = "<!doctype html><title>Numbers</title><link rel=icon href=data:,>"


# sse-starlette.


async def starlette_numbers(request: Request) -> EventSourceResponse:
    async def numbers() -> AsyncGenerator[dict[str, str]]:
        number = int(request.headers.get("last-event-id", 0))
        while True:
            number += 1
            yield {"id": str(number), "data": str(number)}
            await asyncio.sleep(PAUSE)

    return EventSourceResponse(numbers())


starlette_app = Starlette(
    routes=[Route("/", lambda request: HTMLResponse(HOME)), Route("/numbers", starlette_numbers)],
)


# FastAPI.

fastapi_app = fastapi.FastAPI()


@fastapi_app.get("/", response_class=HTMLResponse)
async def fastapi_home() -> str:
    return HOME


@fastapi_app.get("/numbers", response_class=fastapi.sse.EventSourceResponse)
async def fastapi_numbers(
    last_event_id: Annotated[int, fastapi.Header()] = 0,
) -> AsyncIterable[fastapi.sse.ServerSentEvent]:
    number = last_event_id
    while True:
        number += 1
        yield fastapi.sse.ServerSentEvent(raw_data=str(number), id=str(number))
        await asyncio.sleep(PAUSE)


# Litestar.


@litestar.get("/", media_type=litestar.MediaType.HTML)
async def litestar_home() -> str:
    return HOME


@litestar.get("/numbers", sync_to_thread=False)
def litestar_numbers(request: litestar.Request) -> ServerSentEvent:
    async def numbers() -> AsyncGenerator[ServerSentEventMessage]:
        number = int(request.headers.get("last-event-id", 0))
        while True:
            number += 1
            yield ServerSentEventMessage(id=number, data=str(number))
            await asyncio.sleep(PAUSE)

    return ServerSentEvent(numbers())


litestar_app = litestar.Litestar([litestar_home, litestar_numbers])
