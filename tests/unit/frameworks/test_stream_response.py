"""`StreamResponse` of Starlette and FastAPI, with the middleware that apps have."""

from typing import Any

import pytest
from fastapi import FastAPI
from starlette.background import BackgroundTask
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware

from asgibus.fastapi import BusDep, StreamResponse
from asgibus.protocol import events
from asgibus.protocol.connect_request import EVENT_STREAMS, STREAMS
from support.bus import until
from support.worker_harness import Interface, running

pytestmark = pytest.mark.anyio

OFFERED = {"asgibus": {EVENT_STREAMS: True, STREAMS: True}}


def app_of(*middleware: Any) -> Any:
    """Return an app behind middleware, without the lifespan that it does not need."""
    app = FastAPI()
    ran: list[str] = []
    for kind, options in middleware:
        app.add_middleware(kind, **options)

    @app.get("/")
    async def read() -> StreamResponse:
        response = StreamResponse("answer", event="token", background=BackgroundTask(ran.append, "background"))
        response.set_cookie("mine", "1")
        return response

    @app.get("/object")
    async def read_object(bus: BusDep) -> StreamResponse:
        return StreamResponse(bus.layer.stream("answer"), template="raw", headers={"x-mine": "1"})

    async def without_lifespan(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] != "lifespan"
        await app(scope, receive, send)

    without_lifespan.ran = ran  # type: ignore[attr-defined]
    return without_lifespan


async def call_next(request: Any, following: Any) -> Any:
    response = await following(request)
    response.headers["x-seen"] = "1"
    return response


async def detached(interface: Interface, **fields: Any) -> list[Any]:
    """Return the events of a response that was detached."""
    number = interface.open(extensions=OFFERED, headers=((b"accept-encoding", b"gzip"), (b"origin", b"x")), **fields)
    await interface.last(number, events.DETACH)
    return interface.events(number)


@pytest.mark.parametrize(
    "middleware",
    [
        (),
        ((BaseHTTPMiddleware, {"dispatch": call_next}),),
        ((CORSMiddleware, {"allow_origins": ["*"]}), (BaseHTTPMiddleware, {"dispatch": call_next})),
        ((GZipMiddleware, {}),),
    ],
    ids=["none", "base", "cors and base", "gzip"],
)
async def test_a_response_is_detached_behind_middleware(middleware: Any) -> None:
    app = app_of(*middleware)
    async with running(app) as interface:
        head, *_, detach = await detached(interface)
        await until(lambda: app.ran, what="the background task")
    lines = head[2]
    assert b"content-type: text/event-stream" in lines
    assert b"set-cookie: mine=1" in lines
    assert (b"x-seen: 1" in lines) is any(kind is BaseHTTPMiddleware for kind, _ in middleware)
    assert b"content-length" not in lines
    assert detach[1] == "answer"


async def test_a_stream_of_the_layer_is_the_same_as_its_name() -> None:
    async with running(app_of()) as interface:
        head, _, detach = await detached(interface, raw_path=b"/object")
    assert b"x-mine: 1\r\n" in head[2]
    assert detach[1] == "answer"


@pytest.mark.parametrize("template", [{"new": "x"}, {"kind": "websocket"}, {"event": "x"}, "html", ""])
def test_a_template_is_checked_at_once(template: Any) -> None:
    with pytest.raises(ValueError, match=r'no member|is "raw" or a dict'):
        StreamResponse("answer", template=template)
