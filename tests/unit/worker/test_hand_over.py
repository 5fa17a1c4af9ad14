"""Hand-over of WebSockets: each app gets a disconnect, may clean up, and then another run continues."""

import asyncio
from typing import Any

import pytest

import asgibus
from asgibus.layers.codec import unpack
from asgibus.layers.frames import ACK, EVENT, EVENT_OFFSET, PROBE, RESEND, RESET
from asgibus.protocol import events
from asgibus.protocol.connect_request import HTTP, WEBSOCKET
from asgibus.worker import session_registry
from asgibus.worker import worker as worker_module
from support.bus import until
from support.deadline import in_time
from support.worker_harness import Interface, accept, echo, hello, running, status_and_body

pytestmark = pytest.mark.anyio

HAND_OVER_DISCONNECT = {"type": "websocket.disconnect", "code": 1012, "reason": ""}


async def handed_over(interface: Interface, number: int) -> tuple[Any, ...]:
    """Acknowledge the HANDOVER frame, which must be the last of its connection, and return the frame."""
    frames = await interface.last(number, events.HANDOVER)
    assert [frame[3] for frame in frames if frame[0] == EVENT] == list(range(len(interface.events(number))))
    assert frames[-1][EVENT_OFFSET:] == (events.HANDOVER,)
    interface.acknowledge(number, frames[-1][2])
    return frames[-1]


async def test_an_app_cleans_up_before_its_hand_over() -> None:
    seen: list[Any] = []
    cleaned = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "websocket"
        connection = asgibus.connection(scope)
        await receive()
        await send({"type": "websocket.accept"})
        seen.append((await receive())["text"])
        connection.state["seen"] = list(seen)
        seen.append(await receive())
        with pytest.raises(OSError, match="was not sent"):
            await send({"type": "websocket.send", "text": "too late"})
        seen.append(await receive())
        await cleaned.wait()
        connection.state["cleaned"] = True

    async with running(app, resume=True) as interface:
        number = await interface.accepted()
        assert interface.events(number) == [(events.ACCEPT, None, b"", True)]
        interface.send_texts(number, "one")
        await until(lambda: seen)
        interface.stop.set()
        await until(lambda: len(seen) == 3)
        interface.send_texts(number, "two", "three", start=1)
        await until(lambda: interface.worker.gauges()["sessions"] == 1)
        assert not interface.ended.done()
        assert interface.events(number)[1:] == [], "not before the app has returned"
        cleaned.set()
        last = await handed_over(interface, number)
        assert last[4] == 1, "an unread event is acknowledged"
        (state,) = [event[1] for event in interface.events(number) if event[0] == events.SAVE_STATE]
        assert unpack(state)["cleaned"] is True
        await asyncio.wait_for(interface.ended, 30)
    assert seen == ["one", HAND_OVER_DISCONNECT, HAND_OVER_DISCONNECT]


async def test_unread_events_go_to_the_next_run() -> None:
    go = asyncio.Event()
    seen: list[Any] = []

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        await accept(scope, receive, send)
        seen.append(await receive())
        await go.wait()
        seen.append(await receive())

    async with running(slow, resume=True) as interface:
        number = await interface.accepted(window=100_000)
        interface.send_texts(number, "a", "b", "c")
        await until(lambda: seen)
        await interface.drain()
        go.set()
        assert (await handed_over(interface, number))[4] == 1
    assert [event.get("text") for event in seen] == ["a", None]


@pytest.mark.parametrize("handover", ["tell", "silent"])
async def test_a_task_that_was_given_the_last_event_may_finish_it(handover: str) -> None:
    """One task receives, and another one handles: Quart does so."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await accept(scope, receive, send)
        queue: asyncio.Queue[str] = asyncio.Queue()

        async def listen() -> None:
            while (event := await receive())["type"] == "websocket.receive":
                queue.put_nowait(event["text"])

        async def handle() -> None:
            while True:
                text = await queue.get()
                await interface.drain()
                await asyncio.sleep(0.02)
                await send({"type": "websocket.send", "text": text})

        tasks = {asyncio.ensure_future(listen()), asyncio.ensure_future(handle())}
        _, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()

    async with running(app, resume=True, handover=handover) as interface:
        number = await interface.accepted()
        interface.send_texts(number, "a")
        assert (await handed_over(interface, number))[4] == 1
        assert interface.events(number)[1:-1] == [(events.MESSAGE_SENT, "a")]


async def test_a_further_run_gets_the_saved_state_of_the_last_one() -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "websocket"
        connection = asgibus.connection(scope)
        seen.append((connection.attempt, connection.resumed, dict(connection.state)))
        connection.state["runs"] = connection.attempt
        await receive()
        await send({"type": "websocket.accept"})
        seen.append((await receive()).get("text"))
        await receive()

    async with running(app, resume=True) as interface:
        number = await interface.accepted()
        interface.stop.set()
        await handed_over(interface, number)
        (state,) = [event[1] for event in interface.events(number) if event[0] == events.SAVE_STATE]
    async with running(app, resume=True) as interface:
        unread = ((events.MESSAGE_RECEIVED, "left"),)
        number = await interface.accepted(attempt=2, resumed=True, state=state, events=unread)
        await until(lambda: len(seen) == 4)
        interface.stop.set()
        last = await handed_over(interface, number)
        assert last[2:5] == (2, 2, 1)
    assert seen == [(1, False, {}), None, (2, True, {"runs": 1}), "left"]


async def test_an_unchanged_state_is_not_saved_again() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "websocket"
        connection = asgibus.connection(scope)
        await receive()
        if scope["raw_path"] == b"/look":
            connection.state["a"] = 1
            await connection.save_state()
        await send({"type": "websocket.accept"})
        while (await receive())["type"] == "websocket.receive":
            pass

    async with running(app, resume=True) as interface:
        numbers = [await interface.accepted(raw_path=path) for path in (b"/", b"/look")]
        interface.stop.set()
        for number in numbers:
            await handed_over(interface, number)
        codes = [[event[0] for event in interface.events(number)] for number in numbers]
    assert codes[0] == [events.ACCEPT, events.HANDOVER]
    assert sorted(codes[1]) == sorted([events.SAVE_STATE, events.ACCEPT, events.HANDOVER])


@pytest.mark.parametrize("state", [{"a": object()}, {"a": "x" * 20_000}])
async def test_an_unsavable_state_is_logged_and_the_hand_over_continues(
    state: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await accept(scope, receive, send)
        asgibus.connection(scope).state.update(state)
        await receive()

    async with running(app, resume=True) as interface:
        number = await interface.accepted()
        interface.stop.set()
        await handed_over(interface, number)
    assert "could not be handed over" in caplog.text


async def test_an_app_may_save_its_state_while_it_cleans_up() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "websocket"
        connection = asgibus.connection(scope)
        await receive()
        await send({"type": "websocket.accept"})
        await receive()
        connection.state["n"] = 1
        await connection.save_state()
        raise ValueError("in cleaning up")

    async with running(app, resume=True) as interface:
        number = await interface.accepted()
        interface.stop.set()
        await handed_over(interface, number)
        assert [event[0] for event in interface.events(number)] == [
            events.ACCEPT,
            events.SAVE_STATE,
            events.HANDOVER,
        ]


async def test_group_discard_in_a_hand_over_keeps_the_membership() -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "websocket"
        connection = asgibus.connection(scope)
        await receive()
        await send({"type": "websocket.accept"})
        await receive()
        await connection.group_discard("room")
        seen.append("discarded")
        with pytest.raises(OSError, match="memberships"):
            await connection.group_add("room")

    async with running(app, resume=True) as interface:
        number = await interface.accepted()
        interface.stop.set()
        await handed_over(interface, number)
        assert [event[0] for event in interface.events(number)] == [events.ACCEPT, events.HANDOVER]
    assert seen == ["discarded"]


async def test_send_raises_in_an_app_without_receive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "FORCE_SECONDS", 0.05)
    seen: list[Any] = []

    async def ticker(scope: Any, receive: Any, send: Any) -> None:
        await accept(scope, receive, send)
        try:
            while True:
                await send({"type": "websocket.send", "text": "tick"})
                await asyncio.sleep(0.002)
        except OSError as error:
            seen.append(error)
            raise

    async with running(ticker, resume=True) as interface:
        number = await interface.accepted(window=1_000_000)
        interface.stop.set()
        await handed_over(interface, number)
        assert {event[0] for event in interface.events(number)[1:-1]} == {events.MESSAGE_SENT}
    assert len(seen) == 1


async def test_an_endless_app_is_cancelled_and_handed_over() -> None:
    async def stuck(scope: Any, receive: Any, send: Any) -> None:
        await accept(scope, receive, send)
        await asyncio.get_running_loop().create_future()

    async with running(stuck, resume=True, graceful_timeout=0.1) as interface:
        number = await interface.accepted()
        interface.send_texts(number, "not taken")
        interface.stop.set()
        assert (await handed_over(interface, number))[4] == 0


async def test_an_unaccepted_websocket_is_handed_over() -> None:
    async def slow(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "websocket"
        await receive()
        assert await receive() == HAND_OVER_DISCONNECT
        with pytest.raises(OSError, match="was not sent"):
            await send({"type": "websocket.accept"})

    async with running(slow, resume=True) as interface:
        number = interface.open(WEBSOCKET)
        await until(lambda: interface.frames(number))
        interface.stop.set()
        await handed_over(interface, number)
        assert interface.events(number) == [(events.HANDOVER,)]


async def test_a_closed_websocket_is_not_handed_over() -> None:
    go = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await accept(scope, receive, send)
        await go.wait()
        await send({"type": "websocket.close", "code": 4000})

    async with running(app, resume=True) as interface:
        number = await interface.accepted()
        await interface.drain()
        go.set()
        assert (await interface.answer(number))[-1] == (events.CLOSE, 4000, "")
        interface.acknowledge(number)


async def test_a_client_lost_during_the_hand_over_is_handed_over() -> None:
    """The client leaves after the disconnect of the hand-over, so another run gets the final disconnect."""
    go = asyncio.Event()
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await accept(scope, receive, send)
        seen.append(await receive())
        await go.wait()

    async with running(app, resume=True) as interface:
        number = await interface.accepted()
        interface.stop.set()
        await until(lambda: seen)
        interface.post((EVENT, number, 1, 0, 1, events.WEBSOCKET_DISCONNECT, 1001, ""))
        interface.post((PROBE, number, 1, 1))
        await until(lambda: interface.frames(number)[-1][0] in (ACK, RESET))
        go.set()
        await interface.last(number, events.HANDOVER)
        interface.acknowledge(number)
        await asyncio.wait_for(interface.ended, 30)
        assert [event[0] for event in interface.events(number)] == [events.ACCEPT, events.HANDOVER]


async def test_without_resume_a_websocket_is_closed(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "websocket"
        await receive()
        if scope["raw_path"] == b"/late":
            seen.append(await receive())
            return
        await send({"type": "websocket.accept"})
        seen.append(await receive())

    async with running(app) as interface:
        number = await interface.accepted()
        assert interface.events(number) == [(events.ACCEPT, None, b"", False)]
        late = interface.open(WEBSOCKET, raw_path=b"/late")
        await until(lambda: interface.frames(late))
        resumed = await interface.accepted(attempt=2, resumed=True)
        interface.stop.set()
        for each in (number, resumed):
            assert (await interface.answer(each))[-1] == (events.CLOSE, 1012, "")
            interface.acknowledge(each, interface.frames(each)[-1][2])
        assert status_and_body(await interface.answer(late))[0] == 503
        interface.acknowledge(late)
        await asyncio.wait_for(interface.ended, 30)
    assert seen == [HAND_OVER_DISCONNECT] * 3
    assert "ERROR" not in caplog.text


async def test_requests_are_finished_while_websockets_are_handed_over() -> None:
    go = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await go.wait()
            await hello(scope, receive, send)
        else:
            await echo(scope, receive, send)

    async with running(app, resume=True) as interface:
        socket, request = await interface.accepted(), interface.open(HTTP)
        await until(lambda: interface.frames(request))
        interface.stop.set()
        await handed_over(interface, socket)
        assert not interface.ended.done()
        go.set()
        assert status_and_body(await interface.answer(request)) == (200, b"/")


async def test_many_websockets_are_handed_over_within_the_drain_period() -> None:
    async with running(echo, resume=True, drain_period=0.2) as interface:
        numbers = [await interface.accepted() for _ in range(50)]
        start = asyncio.get_running_loop().time()
        interface.stop.set()
        for number in numbers:
            await handed_over(interface, number)
        assert asyncio.get_running_loop().time() - start > 0.1
        in_time(asyncio.get_running_loop().time() - start, 5.0)


# The final frames of a worker.


async def test_final_frames_are_kept_until_acknowledged_and_repeated_at_a_probe() -> None:
    async with running(echo, resume=True) as interface:
        number = await interface.accepted()
        interface.send_texts(number, "a")
        await until(lambda: len(interface.events(number)) == 2)
        interface.stop.set()
        await interface.last(number, events.HANDOVER)
        await until(lambda: interface.worker.gauges()["sessions"] == 0)
        interface.post((RESEND, number, 1, 1))
        await until(lambda: len(interface.events(number)) == 5)
        assert interface.events(number)[3:] == [(events.MESSAGE_SENT, "a"), (events.HANDOVER,)]
        assert not interface.ended.done()
        interface.post((ACK, number, 1, 2))
        interface.send_texts(number, "too late", start=1)
        interface.post((PROBE, number, 1, 2))
        await until(lambda: interface.frames(number)[-1][0] in (ACK, RESEND))
        assert not interface.ended.done(), "the hand-over itself is not acknowledged"
        interface.post((ACK, number, 1, 3))
        await asyncio.wait_for(interface.ended, 30)


async def test_final_frames_to_an_interface_server_with_a_newer_run_are_dropped() -> None:
    async with running(echo, resume=True) as interface:
        number = await interface.accepted()
        interface.stop.set()
        await interface.last(number, events.HANDOVER)
        interface.post((RESET, number, 1))
        await asyncio.wait_for(interface.ended, 30)


async def test_final_frames_to_a_lost_client_are_dropped() -> None:
    async def refuse(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "websocket"
        await send({"type": "websocket.close"})

    async with running(refuse) as interface:
        number = interface.open(WEBSOCKET)
        await interface.last(number, events.CLOSE)
        await until(lambda: interface.worker.gauges()["sessions"] == 0)
        interface.post((EVENT, number, 1, 0, 0, events.WEBSOCKET_DISCONNECT, 1006, ""))
        interface.stop.set()
        await asyncio.wait_for(interface.ended, 1)


async def test_a_worker_stops_waiting_for_acknowledgements_of_final_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_registry, "SETTLE_SECONDS", 0.05)
    async with running(echo, resume=True) as interface:
        number = await interface.accepted()
        interface.stop.set()
        await interface.last(number, events.HANDOVER)
        await asyncio.wait_for(interface.ended, 30)


async def test_a_close_is_repeated_until_acknowledged() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await accept(scope, receive, send)
        await send({"type": "websocket.close", "code": 4000})

    async with running(app) as interface:
        number = interface.open(WEBSOCKET)
        await interface.answer(number)
        await until(lambda: interface.worker.gauges()["sessions"] == 0)
        interface.post((RESEND, number, 1, 1))
        await until(lambda: interface.events(number).count((events.CLOSE, 4000, "")) == 2)
        interface.post((ACK, number, 1, 2), (PROBE, number, 1, 0))
        await until(lambda: (RESET, number, 1) in interface.frames(number))
