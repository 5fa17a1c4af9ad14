"""Allowed calls of apps after a disconnect, after their last event, and during a drain."""

import asyncio
import copy
import json
import pickle
from typing import Any

import pytest

import asgibus
from asgibus.layers.frames import EVENT, RESET
from asgibus.protocol import events
from asgibus.protocol.connect_request import HTTP, WEBSOCKET
from asgibus.worker import worker as worker_module
from support.bus import until
from support.worker_harness import accept, running, status_and_body

pytestmark = pytest.mark.anyio

START = {"type": "http.response.start", "status": 200, "headers": []}
STREAM = START | {"headers": [(b"content-type", b"text/event-stream; charset=utf-8")]}


def body(data: bytes, *, more: bool = False) -> dict[str, Any]:
    return {"type": "http.response.body", "body": data, "more_body": more}


# Disconnects.


@pytest.mark.parametrize("answer", [[body(b"all")], [body(b"part", more=True), body(b"")], [body(b"x" * 200_000)]])
async def test_a_whole_response_after_the_disconnect_is_no_error(
    answer: list[dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    """A response through the middleware of a framework arrives as one part and an empty end."""
    work: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] != "lifespan"
        while (await receive())["type"] != "http.disconnect":
            pass
        await send(START)
        for part in answer:
            await send(part)
        work.append("mail sent, commit")

    async with running(app) as interface:
        number = interface.open(HTTP, method="POST")
        await until(lambda: interface.worker.gauges()["sessions"])
        interface.post((RESET, number, 1), (EVENT, number, 1, 1, 0, events.HTTP_DISCONNECT, True))
        await until(lambda: work)
        await until(lambda: not interface.worker.gauges()["sessions"])
        assert interface.events(number) == []
    assert caplog.text == ""


@pytest.mark.parametrize("started", [False, True])
async def test_a_streamed_response_after_the_disconnect_raises(started: bool, caplog: pytest.LogCaptureFixture) -> None:
    sent: list[int] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] != "lifespan"
        if started:
            await send(START)
            await send(body(b"0", more=True))
        await receive()
        while (await receive())["type"] != "http.disconnect":
            pass
        if not started:
            await send(START)
        for number in range(100):
            await send(body(b"%d" % number, more=True))
            sent.append(number)

    async with running(app) as interface:
        number = interface.open(HTTP)
        await until(lambda: interface.worker.gauges()["sessions"])
        if started:
            await until(lambda: len(interface.events(number)) == 2)
        interface.post((RESET, number, 1))
        await until(lambda: not interface.worker.gauges()["sessions"])
    assert sent == ([] if started else [0]), "the first part may be a whole answer"
    assert caplog.text == ""


async def test_invalid_events_after_the_disconnect_are_ignored(caplog: pytest.LogCaptureFixture) -> None:
    finished: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] != "lifespan"
        if scope["type"] == "websocket":
            assert (await receive())["type"] == "websocket.connect"
            await send({"type": "websocket.accept"})
            assert (await receive())["type"] == "websocket.disconnect"
            for code in (1005, 1006, None, "nonsense"):
                await send({"type": "websocket.close", "code": code})
            await send({"type": "websocket.accept"})
            with pytest.raises(OSError, match=r"the client is gone: 'websocket\.send' was not sent"):
                await send({"type": "websocket.send", "text": "late"})
        else:
            await receive()
            await receive()
            await send({"type": "http.response.start", "status": "nonsense"})
            await send(START)
            await send(START)
            await send({"type": "http.response.trailers"})
        finished.append(scope["type"])

    async with running(app) as interface:
        socket, request = await interface.accepted(), interface.open(HTTP)
        await until(lambda: interface.worker.gauges()["sessions"] == 2)
        interface.post((EVENT, socket, 1, 0, 1, events.WEBSOCKET_DISCONNECT, 1005, ""), (RESET, request, 1))
        await until(lambda: sorted(finished) == ["http", "websocket"])
    assert caplog.text == ""


@pytest.mark.parametrize("notified", [True, False])
async def test_a_second_response_after_the_disconnect_is_no_error(
    notified: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """The second answer is ignored, since the client has closed its sending side and may still read."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] != "lifespan"
        await receive()
        await send(STREAM)
        await send(body(b"data: 1\n\n", more=True))
        if notified:
            assert (await receive())["type"] == "http.disconnect"
        await send(START)
        await send(body(b""))

    async with running(app) as interface:
        number = interface.open(HTTP)
        await until(lambda: len(interface.events(number)) >= 2)
        interface.post((EVENT, number, 1, 1, 0, events.HTTP_DISCONNECT, False))
        await until(lambda: not interface.worker.gauges()["sessions"])
        assert interface.events(number)[-1] == ((events.RESPONSE_END, b"") if notified else (events.ABORT,))
    assert ("RESPONSE_START is not allowed" in caplog.text) is not notified


class WebSocketDisconnect(Exception):
    """A disconnect error of a framework."""


@pytest.mark.parametrize("disconnected", [True, False])
async def test_disconnect_errors_of_frameworks_are_not_logged(
    disconnected: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await accept(scope, receive, send)
        if disconnected:
            await receive()
        raise WebSocketDisconnect(1006)

    async with running(app) as interface:
        number = await interface.accepted()
        interface.post((EVENT, number, 1, 0, 1, events.WEBSOCKET_DISCONNECT, 1001, ""))
        await until(lambda: not interface.worker.gauges()["sessions"])
    assert ("the app raised" in caplog.text) is not disconnected


async def test_other_errors_after_the_disconnect_are_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await accept(scope, receive, send)
        await receive()
        raise ZeroDivisionError

    async with running(app) as interface:
        number = await interface.accepted()
        interface.post((EVENT, number, 1, 0, 1, events.WEBSOCKET_DISCONNECT, 1001, ""))
        await until(lambda: not interface.worker.gauges()["sessions"])
    assert "ZeroDivisionError" in caplog.text


async def test_a_waiting_send_completes_at_a_hand_over() -> None:
    """A waiting `send` completes at a hand-over; with an error the next run would send the message again."""
    sent: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await accept(scope, receive, send)
        await send({"type": "websocket.send", "text": "x" * 1000})
        sent.append("x")
        assert (await receive())["code"] == 1012

    async with running(app, resume=True) as interface:
        number = interface.open(WEBSOCKET, window=500)
        await until(lambda: len(interface.events(number)) == 2)
        assert sent == []
        short_wait = pytest.MonkeyPatch()
        short_wait.setattr(worker_module, "FORCE_SECONDS", 0.0)
        try:
            interface.stop.set()
            await interface.last(number, events.HANDOVER)
        finally:
            short_wait.undo()
        assert sent == ["x"]
        interface.acknowledge(number)


# After the last event of the app.


async def test_receive_after_a_complete_response_is_a_disconnect() -> None:
    received: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] != "lifespan"
        await send(START)
        await send(body(b"early"))
        received.extend([await receive(), await receive()])

    async with running(app) as interface:
        number = interface.open(HTTP, method="POST", events=((events.REQUEST_BODY, b"unread"),))
        interface.post((EVENT, number, 1, 1, 0, events.REQUEST_END, b"unread, too"))
        assert status_and_body(await interface.answer(number)) == (200, b"early")
        await until(lambda: received)
    assert received == [{"type": "http.disconnect"}] * 2


# Shapes of events.


async def test_only_a_late_last_part_of_a_body_is_empty() -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] != "lifespan"
        while True:
            seen.append(await receive())
            if not seen[-1]["more_body"]:
                break
        await send(START)
        await send(body(b""))

    async with running(app) as interface:
        number = interface.open(HTTP, method="POST", events=((events.REQUEST_BODY, b""),))
        await until(lambda: interface.worker.gauges()["sessions"])
        assert seen == []
        interface.post(
            (EVENT, number, 1, 1, 0, events.REQUEST_BODY, b"body"), (EVENT, number, 1, 2, 0, events.REQUEST_END, b"")
        )
        await interface.answer(number)
        assert seen == [{"type": "http.request", "body": b"body", "more_body": False}]

        seen.clear()
        number = interface.open(HTTP, method="POST", events=((events.REQUEST_BODY, b"part"),))
        await until(lambda: seen)
        interface.post((EVENT, number, 1, 1, 0, events.REQUEST_END, b""))
        await interface.answer(number)
        assert [(event["body"], event["more_body"]) for event in seen] == [(b"part", True), (b"", False)]


@pytest.mark.parametrize("kind", [HTTP, WEBSOCKET])
async def test_a_scope_can_be_copied_pickled_and_dumped(kind: str) -> None:
    scopes: list[Any] = []
    connections: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] != "lifespan"
        connections.extend(asgibus.connection(each) for each in (scope, copy.copy(scope), copy.deepcopy(scope)))
        assert json.loads(json.dumps(scope["extensions"]))["asgibus"] == {"attempt": 1, "resumed": False}
        scopes.append(pickle.loads(pickle.dumps(scope)))
        await receive()
        await send({"type": "websocket.close"} if kind == WEBSOCKET else START)
        if kind == HTTP:
            await send(body(b""))

    async with running(app) as interface:
        number = interface.open(kind)
        await interface.answer(number)
        interface.acknowledge(number)
    assert len(set(connections)) == 1
    assert scopes[0]["path"] == "/"
    with pytest.raises(RuntimeError, match="this scope was pickled"):
        _ = asgibus.connection(scopes[0]).reply_channel


# A draining worker.


class Events:
    """An event stream that notes its end; `listens`: the app asks for `http.disconnect`."""

    def __init__(self, *, listens: bool) -> None:
        self.listens = listens
        self.ended: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        await receive()
        await send(STREAM)
        await send(body(b"data: 1\n\n", more=True))
        try:
            if self.listens:
                self.ended.append((await receive())["type"])
            else:
                while True:
                    await asyncio.sleep(0.01)  # an event now and then
                    await send(body(b"data: 2\n\n", more=True))
        except OSError as error:
            self.ended.append(type(error).__name__)
            raise


@pytest.mark.parametrize("listens", [True, False])
async def test_an_event_stream_gets_a_disconnect_at_a_drain_and_ends_in_order(
    listens: bool, caplog: pytest.LogCaptureFixture
) -> None:
    app = Events(listens=listens)
    async with running(app, graceful_timeout=600.0) as interface:
        number = interface.open(HTTP, window=100_000)
        await until(lambda: len(interface.events(number)) >= 2)
        interface.stop.set()
        await asyncio.wait_for(interface.ended, 10)
        assert app.ended == ["http.disconnect" if listens else "ClientDisconnected"]
        code, end = interface.events(number)[-1]
        assert (code, end[:7]) == (events.RESPONSE_END, b"retry: "), "its client comes back in a while"
        assert {event[0] for event in interface.events(number)[1:-1]} == {events.RESPONSE_BODY}
    assert caplog.text == ""


async def test_an_event_stream_started_in_a_drain_gets_a_disconnect() -> None:
    go = asyncio.Event()
    stream = Events(listens=True)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] != "lifespan"
        await go.wait()
        await stream(scope, receive, send)

    async with running(app, graceful_timeout=30.0) as interface:
        number = interface.open(HTTP)
        await until(lambda: interface.worker.gauges()["sessions"])
        interface.stop.set()
        await until(lambda: interface.worker.ready() is not None)
        go.set()
        await asyncio.wait_for(interface.ended, 10)
        assert stream.ended == ["http.disconnect"]
        code, end = interface.events(number)[-1]
        assert (code, end[:7]) == (events.RESPONSE_END, b"retry: "), "its client comes back in a while"


async def test_other_responses_get_a_disconnect_before_they_are_cut() -> None:
    received: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] != "lifespan"
        await receive()
        await send(START)
        await send(body(b"half", more=True))
        received.append(await receive())
        await send(body(b" and half"))

    async with running(app, graceful_timeout=0.4) as interface:
        number = interface.open(HTTP)
        await until(lambda: len(interface.events(number)) == 2)
        interface.stop.set()
        assert status_and_body(await interface.answer(number)) == (200, b"half and half")
    assert received == [{"type": "http.disconnect"}]


# The reason in the error of `send`.


async def test_send_in_a_drain_names_the_worker_as_the_reason() -> None:
    errors: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] != "lifespan"
        await send(STREAM)
        await send(body(b"one", more=True))
        while (await receive())["type"] != "http.disconnect":
            pass
        with pytest.raises(OSError, match="was not sent") as raised:
            await send(body(b"two", more=True))
        errors.append(str(raised.value))

    async with running(app) as interface:
        number = interface.open(HTTP)
        await interface.last(number, events.RESPONSE_BODY)
        interface.stop.set()
        await interface.answer(number)
        assert errors == ["the worker stops: 'http.response.body' was not sent"]


async def test_a_stop_without_resume_lets_the_app_answer_before_the_close() -> None:
    working, stopping = asyncio.Event(), asyncio.Event()
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await accept(scope, receive, send)
        await receive()
        working.set()
        await stopping.wait()
        await send({"type": "websocket.send", "text": "answer"})
        seen.append(await receive())

    async with running(app) as interface:
        number = await interface.accepted()
        interface.send_texts(number, "a", "b")
        await working.wait()
        await interface.drain()
        stopping.set()
        answer = await interface.answer(number)
        assert [event[0] for event in answer] == [events.ACCEPT, events.MESSAGE_SENT, events.CLOSE]
        assert answer[-1] == (events.CLOSE, 1012, "")
        assert seen == [{"type": "websocket.disconnect", "code": 1012, "reason": ""}]


async def test_send_after_the_return_names_the_app_as_the_reason() -> None:
    errors: list[str] = []
    tasks: list[asyncio.Task[None]] = []
    returned = asyncio.Event()

    async def late(send: Any) -> None:
        await returned.wait()
        with pytest.raises(OSError, match="was not sent") as raised:
            await send({"type": "websocket.send", "text": "late"})
        errors.append(str(raised.value))

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] != "lifespan"
        await send({"type": "websocket.accept"})
        tasks.append(asyncio.create_task(late(send)))

    async with running(app) as interface:
        number = interface.open(WEBSOCKET)
        await interface.answer(number)
        interface.acknowledge(number)
        returned.set()
        await until(lambda: errors)
        assert errors == ["the app has returned: 'websocket.send' was not sent"]


@pytest.mark.parametrize("kind", [HTTP, WEBSOCKET])
async def test_a_task_that_outlives_its_app_receives_a_disconnect(kind: str) -> None:
    tasks: list[asyncio.Task[str]] = []
    receiving = asyncio.Event()

    async def until_disconnect(receive: Any) -> str:
        while True:
            receiving.set()
            event = await receive()
            if event["type"].endswith(".disconnect"):
                return str(event["type"])

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] != "lifespan"
        if kind == WEBSOCKET:
            await send({"type": "websocket.accept"})
        else:
            await receive()
            await send({"type": "http.response.start", "status": 200, "headers": []})
        tasks.append(asyncio.create_task(until_disconnect(receive)))
        await receiving.wait()

    async with running(app) as interface:
        await interface.answer(interface.open(kind))
        async with asyncio.timeout(10):
            assert await tasks[0] == f"{kind}.disconnect"
