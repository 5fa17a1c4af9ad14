"""Acknowledgement of client events: unacknowledged events of a killed worker go to the next run."""

import asyncio
from typing import Any

import anyio
import pytest

import asgibus
from asgibus.layers.frames import ACK, EVENT, PROBE
from asgibus.protocol import events
from asgibus.worker import session_registry
from asgibus.worker import worker as worker_module
from support.bus import until
from support.worker_harness import Interface, accept, echo, running

pytestmark = pytest.mark.anyio


class Slow:
    """An app for WebSockets that answers each message at once, and asks for the next when permitted."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.may_go_on = asyncio.Semaphore(0)
        self.fails = False

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await accept(scope, receive, send)
        while (event := await receive())["type"] == "websocket.receive":
            self.seen.append(event["text"])
            await send({"type": "websocket.send", "text": event["text"]})
            await self.may_go_on.acquire()
            if self.fails:
                raise RuntimeError("the handler failed")


def acknowledged(interface: Interface, number: int) -> int:
    """Return how many events are acknowledged to the interface server."""
    return max(frame[4] if frame[0] == EVENT else frame[3] for frame in interface.frames(number) if frame[0] != PROBE)


@pytest.fixture
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_registry, "TICK_SECONDS", 0.002)


@pytest.mark.usefixtures("_fast")
async def test_an_event_is_acknowledged_at_the_next_receive() -> None:
    app = Slow()
    async with running(app) as interface:
        number = await interface.accepted()
        interface.send_texts(number, "a", "b")
        await until(lambda: len(interface.events(number)) == 2)
        interface.post((PROBE, number, 1, 2))
        await until(lambda: (ACK, number, 1, 0) in interface.frames(number))
        await asyncio.sleep(0.05)  # many ticks, which must not acknowledge anything
        assert acknowledged(interface, number) == 0
        app.may_go_on.release()
        await until(lambda: acknowledged(interface, number) == 1)
        assert app.seen == ["a", "b"]
        app.may_go_on.release()
        await until(lambda: acknowledged(interface, number) == 2)


async def test_a_reply_carries_the_acknowledgement_of_an_immediate_receive() -> None:
    async with running(echo) as interface:
        number = await interface.accepted()
        interface.send_texts(number, "a")
        await until(lambda: len(interface.events(number)) == 2)
        assert interface.frames(number)[1] == (EVENT, number, 1, 1, 1, events.MESSAGE_SENT, "a")
        interface.send_texts(number, "b", "c", start=1)
        await until(lambda: len(interface.events(number)) == 4)
        assert [frame[4] for frame in interface.frames(number) if frame[0] == EVENT] == [0, 1, 2, 3]
        await asyncio.sleep(2 * session_registry.TICK_SECONDS)
        assert [frame[0] for frame in interface.frames(number)] == [EVENT] * 4, "there is nothing more to say"


async def test_a_sent_frame_is_not_altered_by_later_acknowledgements() -> None:
    app = Slow()
    async with running(app) as interface:
        number = await interface.accepted()
        interface.send_texts(number, "a")
        await until(lambda: len(interface.events(number)) == 2)
        answer = interface.frames(number)[1]
        app.may_go_on.release()
        await until(lambda: (ACK, number, 1, 1) in interface.frames(number))
        assert answer == (EVENT, number, 1, 1, 0, events.MESSAGE_SENT, "a")


@pytest.mark.usefixtures("_fast")
async def test_early_acknowledgement_by_option() -> None:
    app = Slow()
    async with running(app, acknowledge="taken") as interface:
        number = await interface.accepted()
        interface.send_texts(number, "a", "b")
        await until(lambda: acknowledged(interface, number) == 1)
        assert app.seen == ["a"]
        app.may_go_on.release()
        await until(lambda: acknowledged(interface, number) == 2)
        app.may_go_on.release()  # the app returns at the disconnect


@pytest.mark.usefixtures("_fast")
async def test_events_read_ahead_are_acknowledged() -> None:
    queue: asyncio.Queue[Any] = asyncio.Queue()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await accept(scope, receive, send)
        while (event := await receive())["type"] == "websocket.receive":
            queue.put_nowait(event)

    async with running(app) as interface:
        number = await interface.accepted()
        interface.send_texts(number, "a", "b", "c")
        await until(lambda: acknowledged(interface, number) == 3)
        assert queue.qsize() == 3


@pytest.mark.usefixtures("_fast")
async def test_joining_a_group_does_not_acknowledge_the_event() -> None:
    joined = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await accept(scope, receive, send)
        await receive()
        await asgibus.connection(scope).group_add("room")
        joined.set()
        await asyncio.Event().wait()

    async with running(app, graceful_timeout=0.1) as interface:
        number = await interface.accepted()
        interface.send_texts(number, "a")
        await until(lambda: (events.GROUP_ADD, "room") in interface.events(number))
        interface.post((EVENT, number, 1, 1, 0, events.GROUP_DONE, None, "room"))
        await joined.wait()
        await asyncio.sleep(0.05)  # many ticks
        assert acknowledged(interface, number) == 0


@pytest.mark.parametrize("fails", [False, True])
async def test_an_event_of_a_handler_failed_in_a_drain_is_not_acknowledged(
    fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "FORCE_SECONDS", 0.0)
    app = Slow()
    app.fails = fails
    async with running(app, resume=True) as interface:
        number = await interface.accepted()
        interface.send_texts(number, "a", "b")
        await until(lambda: app.seen == ["a"])
        interface.stop.set()
        await until(lambda: interface.worker.ready() is not None)
        await anyio.wait_all_tasks_blocked()  # so that the app is busy when the worker insists
        app.may_go_on.release()
        frames = await interface.last(number, events.HANDOVER)
        assert frames[-1][4] == (0 if fails else 1)
        interface.acknowledge(number)


async def test_events_are_numbered_over_all_runs() -> None:
    received: list[tuple[int, str]] = []
    before: list[int] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "websocket"
        connection = asgibus.connection(scope)
        before.append(connection.received)
        await receive()
        await send({"type": "websocket.accept"})
        while (event := await receive())["type"] == "websocket.receive":
            received.append((connection.received, event["text"]))

    async with running(app) as interface:
        unread = ((events.MESSAGE_RECEIVED, "eight"), (events.MESSAGE_RECEIVED, "nine"))
        number = await interface.accepted(attempt=2, resumed=True, handled=7, events=unread)
        interface.send_texts(number, "ten", attempt=2, start=2)
        await until(lambda: len(received) == 3)
        assert before == [7]
        assert received == [(8, "eight"), (9, "nine"), (10, "ten")]
