"""Event streams of a worker that stops: handed over where another run can continue, else ended."""

import asyncio
import re
from typing import Any

import pytest

import asgibus
from asgibus.layers.codec import pack
from asgibus.layers.frames import EVENT
from asgibus.protocol import events
from asgibus.protocol.connect_request import EVENT_STREAMS
from support.bus import until
from support.worker_harness import running

pytestmark = pytest.mark.anyio

HEADERS = [(b"content-type", b"text/event-stream")]
OFFERED = {"asgibus": {EVENT_STREAMS: True}}


class App:
    """An app that sends an event, and then waits for the disconnect or sends for ever."""

    def __init__(self, *, headers: Any = HEADERS, status: int = 200, receives: bool = True) -> None:
        self.start = {"type": "http.response.start", "status": status, "headers": headers}
        self.receives = receives
        self.seen: list[Any] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] != "lifespan"
        connection = asgibus.connection(scope)
        await receive()
        await send(self.start)
        await send({"type": "http.response.body", "body": b"id: 1\ndata: 1\n\n", "more_body": True})
        connection.state["seen"] = 1
        try:
            while not self.receives:
                await asyncio.sleep(0.01)
                await send({"type": "http.response.body", "body": b": ping\n", "more_body": True})
            self.seen.append((await receive())["type"])
            await send({"type": "http.response.body", "body": b"id: 2\n", "more_body": False})
        finally:
            self.seen.append(connection.handed_over)


async def test_a_drain_hands_an_event_stream_over() -> None:
    app = App()
    async with running(app, resume=True) as interface:
        number = interface.open(extensions=OFFERED)
        await interface.last(number, events.RESPONSE_BODY)
        await interface.drain()
        await interface.last(number, events.HANDOVER)
        interface.acknowledge(number)
    assert interface.events(number) == [
        (events.EVENT_STREAM, 200, b"content-type: text/event-stream\r\n"),
        (events.RESPONSE_BODY, b"id: 1\ndata: 1\n\n"),
        (events.SAVE_STATE, pack({"seen": 1})),
        (events.HANDOVER,),
    ]
    assert app.seen == ["http.disconnect", True]


async def test_an_app_that_never_receives_is_handed_over_at_once() -> None:
    app = App(receives=False)
    async with running(app, resume=True, graceful_timeout=600) as interface:
        number = interface.open(extensions=OFFERED, window=1_000_000)
        await interface.last(number, events.RESPONSE_BODY)
        await interface.drain()
        await interface.last(number, events.HANDOVER)
    assert app.seen == [True]


@pytest.mark.parametrize(
    ("case", "retries"),
    [
        ({"resume": False}, True),
        ({"extensions": {}}, True),
        ({"extensions": {"asgibus": 5}}, True),
        ({"headers": [*HEADERS, (b"content-encoding", b"gzip")]}, False),
        ({"status": 206}, True),
    ],
)
async def test_an_event_stream_is_ended_where_no_run_can_continue(case: dict[str, Any], retries: bool) -> None:
    app = App(headers=case.get("headers", HEADERS), status=case.get("status", 200))
    async with running(app, resume=case.get("resume", True)) as interface:
        number = interface.open(extensions=case.get("extensions", OFFERED))
        await interface.last(number, events.RESPONSE_BODY)
        await interface.drain()
        answer = await interface.answer(number)
    assert [event[0] for event in answer] == [events.RESPONSE_START, events.RESPONSE_BODY, events.RESPONSE_END]
    assert bool(re.fullmatch(rb"retry: [0-9]+\n", answer[-1][1])) == retries
    assert answer[-1][1] == b"" or retries
    assert app.seen == ["http.disconnect", False]


async def test_an_app_that_ends_its_event_stream_itself_has_ended_it() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] != "lifespan"
        await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
        await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": False})

    async with running(app, resume=True) as interface:
        number = interface.open(extensions=OFFERED)
        answer = await interface.answer(number)
    assert answer == [(events.RESPONSE, 200, b"content-type: text/event-stream\r\n", b"data: 1\n\n")]


async def test_a_further_run_knows_that_it_continues() -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] != "lifespan"
        connection = asgibus.connection(scope)
        seen.append((connection.resumed, connection.attempt, connection.state, dict(scope["headers"])))
        await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
        await send({"type": "http.response.body", "body": b"", "more_body": True})
        await receive()
        seen.append((await receive())["type"])

    async with running(app, resume=True) as interface:
        headers = ((b"last-event-id", b"1"),)
        number = interface.open(attempt=2, resumed=True, state=pack({"a": 1}), headers=headers, extensions=OFFERED)
        await until(lambda: len(interface.events(number)) >= 1)
        interface.post((EVENT, number, 2, 1, 0, events.HTTP_DISCONNECT, True))
        await until(lambda: len(seen) == 2)
    assert seen == [(True, 2, {"a": 1}, {b"last-event-id": b"1"}), "http.disconnect"]
