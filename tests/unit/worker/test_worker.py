"""The worker between a bus and an app. The test is the interface server, which offers connections and reads frames."""

import asyncio
import gc
from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest

from asgibus.layers.frames import ACK, CLAIMED, EVENT, RESET
from asgibus.protocol import events
from asgibus.protocol.channels import shared_channel
from asgibus.protocol.connect_request import HTTP, WEBSOCKET
from asgibus.worker.lifespan import LifespanError
from support.bus import until
from support.worker_harness import accept, echo, hello, running, status_and_body

pytestmark = pytest.mark.anyio


async def test_many_requests_are_answered() -> None:
    async with running(hello) as interface:
        numbers = [interface.open(raw_path=b"/%d" % number) for number in range(100)]
        for index, number in enumerate(numbers):
            assert status_and_body(await interface.answer(number)) == (200, b"/%d" % index)
            assert [frame[3] for frame in interface.frames(number) if frame[0] == EVENT] == list(
                range(len(interface.events(number)))
            )
        await until(lambda: interface.worker.gauges()["sessions"] == 0)


async def test_a_worker_announces_its_claim_if_the_app_is_slow() -> None:
    go = asyncio.Event()

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        await go.wait()
        await hello(scope, receive, send)

    async with running(slow) as interface:
        number = interface.open()
        await until(lambda: interface.frames(number))
        assert interface.frames(number) == [(CLAIMED, number, 1)]
        go.set()
        assert status_and_body(await interface.answer(number)) == (200, b"/")


async def test_events_of_the_client_reach_the_app_in_order() -> None:
    async with running(echo) as interface:
        number = interface.open(WEBSOCKET)
        await until(lambda: interface.events(number))
        owner = interface.recorder.batches[0][0]
        for sequence in (0, 1, 1, 0, 2):  # some come twice
            interface.bus.post(owner, (EVENT, number, 1, sequence, 1, events.MESSAGE_RECEIVED, f"{sequence}"))
        await until(lambda: len(interface.events(number)) == 4)
        assert interface.events(number)[1:] == [(events.MESSAGE_SENT, f"{sequence}") for sequence in range(3)]
        interface.bus.post(owner, (EVENT, number, 1, 3, 4, events.WEBSOCKET_DISCONNECT, 1001, ""))
        await until(lambda: interface.worker.gauges()["sessions"] == 0)


async def test_received_events_are_acknowledged_in_time() -> None:
    async def quiet(scope: Any, receive: Any, send: Any) -> None:
        await accept(scope, receive, send)
        while (await receive())["type"] == "websocket.receive":
            pass

    async with running(quiet) as interface:
        number = interface.open(WEBSOCKET, window=100_000)
        await until(lambda: interface.events(number))
        owner = interface.recorder.batches[0][0]
        interface.bus.post(owner, (EVENT, number, 1, 0, 1, events.MESSAGE_RECEIVED, "small"))
        await until(lambda: (ACK, number, 1, 1) in interface.frames(number))


async def test_late_frames_are_answered_with_reset() -> None:
    async with running(hello) as interface:
        number = interface.open()
        await interface.answer(number)
        await until(lambda: interface.worker.gauges()["sessions"] == 0)
        owner = interface.recorder.batches[0][0]
        interface.bus.post(owner, (EVENT, number, 1, 1, 1, events.HTTP_DISCONNECT, True))
        interface.bus.post(owner, (EVENT, 999, 1, 0, 0, events.HTTP_DISCONNECT, True))
        interface.bus.post(owner, (ACK, 998, 1, 0))
        interface.bus.post(owner, (EVENT, 997, 1, 0, 0, events.HTTP_DISCONNECT, True))
        await until(lambda: interface.frames(997))
        assert (RESET, number, 1) not in interface.frames(number), "its answer is on its way"
        assert interface.frames(999) == [(RESET, 999, 1)]
        assert interface.frames(998) == []


async def test_frames_of_another_attempt_are_reset() -> None:
    async with running(echo) as interface:
        number = interface.open(WEBSOCKET, attempt=2)
        await until(lambda: interface.events(number))
        owner = interface.recorder.batches[0][0]
        interface.bus.post(owner, (EVENT, number, 1, 0, 0, events.MESSAGE_RECEIVED, "old"))
        interface.bus.post(owner, (EVENT, number, 2, 0, 0, events.MESSAGE_RECEIVED, "new"))
        await until(lambda: (events.MESSAGE_SENT, "new") in interface.events(number))
        assert (events.MESSAGE_SENT, "old") not in interface.events(number)
        assert (RESET, number, 1) in interface.frames(number)


async def test_a_connection_offered_twice_is_served_once() -> None:
    runs: list[Any] = []

    async def counted(scope: Any, receive: Any, send: Any) -> None:
        runs.append(scope)
        await echo(scope, receive, send)

    async with running(counted) as interface:
        number = interface.open(WEBSOCKET)
        interface.open(WEBSOCKET, connection=number)
        other = interface.open(WEBSOCKET)
        await until(lambda: interface.events(number) and interface.events(other))
        assert interface.events(number) == [(events.ACCEPT, None, b"", False)]
        assert len([scope for scope in runs if scope["type"] == "websocket"]) == 2


async def test_an_invalid_connect_request_is_dropped_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    async with running(hello) as interface:
        channel = shared_channel(HTTP, "default")
        interface.bus.offer(channel, ("nonsense",))
        interface.bus.offer(channel, 5)
        interface.open(version=99)
        assert status_and_body(await interface.answer(interface.open())) == (200, b"/")
        assert interface.worker.counts() == {"bad opening": 2, "foreign version": 1, "unreadable entry": 1}
    assert caplog.text.count("was dropped") == 2  # the first of each kind is an error in the log


async def test_the_death_of_an_interface_disconnects_its_clients() -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await accept(scope, receive, send)
        seen.append(await receive())
        try:
            await send({"type": "websocket.send", "text": "too late"})
        except OSError as error:
            seen.append(error)

    async with running(app) as interface:
        number = interface.open(WEBSOCKET)
        await until(lambda: interface.events(number))
        await interface.layer.declare_dead("interface.other!")
        await anyio.wait_all_tasks_blocked()  # the announcement has arrived and must change nothing
        assert interface.worker.gauges()["sessions"] == 1
        await interface.layer.declare_dead(interface.bus.mailbox)
        await until(lambda: interface.worker.gauges()["sessions"] == 0)
        assert seen[0] == {"type": "websocket.disconnect", "code": 1006, "reason": ""}
        assert isinstance(seen[1], OSError)


async def test_an_error_of_the_app_is_logged_once_and_answered(caplog: pytest.LogCaptureFixture) -> None:
    async def fails(scope: Any, receive: Any, send: Any) -> None:
        raise ValueError("the app's own")

    async with running(fails) as interface:
        assert status_and_body(await interface.answer(interface.open()))[0] == 500
    assert caplog.text.count("ValueError: the app's own") == 1
    assert "the app raised on http '/'" in caplog.text


async def test_a_disconnect_closes_the_generator_of_a_stream() -> None:
    """A stream whose client has left is closed at once, without waiting for the garbage collector."""
    closed = asyncio.Event()

    async def parts() -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"part"
        finally:
            closed.set()

    async def stream(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200})
        body = parts()
        async for part in body:
            await send({"type": "http.response.body", "body": part, "more_body": True})
            await asyncio.sleep(0)

    gc.disable()
    try:
        async with running(stream) as interface:
            number = interface.open(events=((events.REQUEST_END, b""),))
            await until(lambda: len(interface.events(number)) > 1)
            interface.post((EVENT, number, 1, 1, 0, events.HTTP_DISCONNECT, True))
            await asyncio.wait_for(closed.wait(), 30)
    finally:
        gc.enable()


async def test_the_concurrency_bounds_running_requests() -> None:
    active: list[Any] = []
    most = 0
    go = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal most
        assert scope["type"] == "http"
        active.append(scope)
        most = max(most, len(active))
        await go.wait()
        active.pop()
        await hello(scope, receive, send)

    async with running(app, concurrency=3) as interface:
        numbers = [interface.open() for _ in range(10)]
        await until(lambda: len(active) == 3)
        await anyio.wait_all_tasks_blocked()  # a fourth would have begun
        assert len(active) == 3
        go.set()
        for number in numbers:
            await interface.answer(number)
    assert most == 3


async def test_draining_closes_websockets_and_lets_requests_finish() -> None:
    go = asyncio.Event()
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.accept"})
            seen.append(await receive())
        else:
            assert scope["type"] == "http"
            await go.wait()
            await hello(scope, receive, send)

    async with running(app) as interface:
        socket, request = interface.open(WEBSOCKET), interface.open()
        await until(lambda: interface.events(socket) and interface.frames(request))
        interface.stop.set()
        assert (await interface.answer(socket))[-1] == (events.CLOSE, 1012, "")
        await until(lambda: seen)
        assert seen == [{"type": "websocket.disconnect", "code": 1012, "reason": ""}]
        late = interface.open()
        assert not interface.ended.done()
        go.set()
        assert status_and_body(await interface.answer(request)) == (200, b"/")
        await asyncio.wait_for(interface.ended, 30)
        assert interface.frames(late) == []


async def test_the_graceful_timeout_cancels_requests(caplog: pytest.LogCaptureFixture) -> None:
    cancelled: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"part", "more_body": True})
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            cancelled.append(scope)
            raise

    async with running(app, graceful_timeout=0.05) as interface:
        number = interface.open()
        await until(lambda: len(interface.events(number)) == 2)
        interface.stop.set()
        await asyncio.wait_for(interface.ended, 30)
        await until(lambda: len(interface.events(number)) == 3)
        assert interface.events(number)[-1] == (events.ABORT,)
    assert len(cancelled) == 1
    assert "1 connections were not finished within 0.05 s and are cancelled" in caplog.text


async def test_each_scope_has_a_copy_of_the_lifespan_state() -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await receive()
            scope["state"]["db"] = "pool"
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
            return
        seen.append(dict(scope["state"]))
        scope["state"]["mine"] = True
        await hello(scope, receive, send)

    async with running(app) as interface:
        for _ in range(2):
            await interface.answer(interface.open())
    assert seen == [{"db": "pool"}, {"db": "pool"}]


async def test_a_worker_with_a_failed_start_up_claims_no_connection() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no"})

    with pytest.raises(LifespanError, match="no"):
        async with running(app):
            pytest.fail("it must not become ready")


async def test_clients_of_other_workers_do_not_count_towards_max_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that retire would otherwise make those retire that continue with their clients."""
    monkeypatch.setattr("asgibus.worker.base.SPREAD", 0.0)
    async with running(echo, resume=True, max_requests=4) as interface:
        for _ in range(20):
            interface.open("websocket", resumed=True, attempt=2)
        await until(lambda: interface.worker.gauges()["sessions"] == 20)
        for _ in range(2):
            await interface.accepted()
        assert not interface.stop.is_set()
        for _ in range(2):
            await interface.accepted()
        await until(interface.stop.is_set)
        for number in range(1, 25):
            await interface.last(number, events.HANDOVER)
            interface.acknowledge(number, 2 if number <= 20 else 1)
