"""Silent hand-over: a run gets no disconnect. It is cancelled and cleans up, or suspended; then another continues."""

import asyncio
import gc
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest

import asgibus
from asgibus.layers.codec import unpack
from asgibus.layers.frames import ACK, EVENT
from asgibus.protocol import events
from asgibus.worker import session as session_module
from asgibus.worker import worker as worker_module
from asgibus.worker.silent_run import awaited_tasks
from support.bus import until
from support.worker_harness import Interface, accept, echo, running

pytestmark = pytest.mark.anyio

SILENT: dict[str, Any] = {"resume": True, "handover": "silent"}
SUSPEND: dict[str, Any] = {"resume": True, "handover": "suspend"}
TEXT = {"type": "websocket.send", "text": "late"}


@pytest.fixture(autouse=True)
def _log_is_clean(caplog: pytest.LogCaptureFixture) -> Any:
    yield
    assert [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")] == []


class Leaves:
    """An app that tells a client that leaves from the end of its run."""

    def __init__(self, listen: Callable[[Any, Any], Awaitable[None]]) -> None:
        self.listen = listen
        self.notes: list[str] = []
        self.handed_over: list[bool] = []
        self.runs: list[int] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "websocket"
        connection = asgibus.connection(scope)
        self.runs.append(connection.attempt)
        await receive()
        await send({"type": "websocket.accept"})
        try:
            await self.listen(receive, send)
            self.notes.append("left")
        except asyncio.CancelledError:
            self.notes.append("cancelled")
            raise
        finally:
            await asyncio.sleep(0)  # a clean-up may wait
            self.handed_over.append(connection.handed_over)
            self.notes.append("cleaned up")


async def until_disconnect(receive: Any, send: Any) -> None:
    """Echo in the task of the run."""
    while (event := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": event["text"]})


async def in_a_task_group(receive: Any, send: Any) -> None:
    """Echo in one task, and wait for something else in another."""
    async with asyncio.TaskGroup() as tasks:
        listening = tasks.create_task(until_disconnect(receive, send))
        other = tasks.create_task(asyncio.sleep(1000))
        await listening
        other.cancel()


async def in_a_child_of_a_task_group(receive: Any, send: Any) -> None:
    async def listen() -> None:
        await until_disconnect(receive, send)
        other.cancel()

    async with asyncio.TaskGroup() as tasks:
        other = tasks.create_task(asyncio.sleep(1000))
        tasks.create_task(listen())


async def in_a_task_group_of_anyio(receive: Any, send: Any) -> None:
    async def listen() -> None:
        await until_disconnect(receive, send)
        tasks.cancel_scope.cancel()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(listen)
        await anyio.sleep(1000)


async def with_gather(receive: Any, send: Any) -> None:
    async def listen() -> None:
        await until_disconnect(receive, send)
        other.cancel()

    other = asyncio.create_task(asyncio.sleep(1000))
    await asyncio.gather(listen(), other, return_exceptions=True)


async def with_wait(receive: Any, send: Any) -> None:
    """Wait for the first of two tasks, without looking at what it returned."""
    waiting = {asyncio.create_task(until_disconnect(receive, send)), asyncio.create_task(asyncio.sleep(1000))}
    _, pending = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()


async def with_dispatch(receive: Any, send: Any) -> None:
    """Wait for the first of two calls, handle its result, and call again. Channels does so."""
    calls: list[Callable[[], Any]] = [receive, asyncio.get_running_loop().create_future]
    tasks = [asyncio.ensure_future(call()) for call in calls]
    try:
        while True:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if tasks[0].done():
                event = tasks[0].result()
                if event["type"] == "websocket.disconnect":
                    return
                await send({"type": "websocket.send", "text": event["text"]})
                tasks[0] = asyncio.ensure_future(receive())
    finally:
        for task in tasks:
            task.cancel()


async def with_a_timeout(receive: Any, send: Any) -> None:
    """Do something else whenever no event comes for a moment."""
    while True:
        try:
            event = await asyncio.wait_for(receive(), 0.03)
        except TimeoutError:
            continue
        if event["type"] == "websocket.disconnect":
            return
        await send({"type": "websocket.send", "text": event["text"]})


WAYS = (
    until_disconnect,
    in_a_task_group,
    in_a_child_of_a_task_group,
    in_a_task_group_of_anyio,
    with_gather,
    with_wait,
    with_dispatch,
    with_a_timeout,
)


async def handed_over(interface: Interface, number: int) -> int:
    """Acknowledge the HANDOVER frame, and return the number of the client's events that are done."""
    frame = (await interface.last(number, events.HANDOVER))[-1]
    interface.post((ACK, number, frame[2], frame[3] + 1))
    done: int = frame[4]
    return done


@pytest.mark.parametrize("listen", WAYS)
async def test_an_app_does_not_take_a_hand_over_for_a_leave(listen: Callable[[Any, Any], Awaitable[None]]) -> None:
    app = Leaves(listen)
    others = len(asyncio.all_tasks())
    async with running(app, **SILENT) as interface:
        number = await interface.accepted()
        interface.send_texts(number, "a")
        await until(lambda: len(interface.events(number)) == 2)
        interface.stop.set()
        assert await handed_over(interface, number) == 1
        assert app.notes == ["cancelled", "cleaned up"], "before the hand-over"
        assert app.handed_over == [True]
        interface.send_texts(number, "unread", start=1)
        await asyncio.wait_for(interface.ended, 30)
    assert interface.events(number)[1:] == [(events.MESSAGE_SENT, "a"), (events.HANDOVER,)]
    assert len(asyncio.all_tasks()) <= others + 1, "a task is left"


async def cancel_suspended(interface: Interface) -> None:
    """End what a process would take with it when it exits."""
    for task in interface.worker.suspended:
        task.cancel()
    await asyncio.wait(interface.worker.suspended)


@pytest.mark.parametrize("listen", WAYS)
async def test_a_suspended_run_stays_as_it_is(listen: Callable[[Any, Any], Awaitable[None]]) -> None:
    app = Leaves(listen)
    async with running(app, **SUSPEND) as interface:
        number = await interface.accepted()
        interface.send_texts(number, "a")
        await until(lambda: len(interface.events(number)) == 2)
        interface.stop.set()
        assert await handed_over(interface, number) == 1
        interface.send_texts(number, "unread", start=1)
        await asyncio.wait_for(interface.ended, 30)
        gc.collect()
        await asyncio.sleep(0.05)
        assert app.notes == []
        assert interface.events(number)[1:] == [(events.MESSAGE_SENT, "a"), (events.HANDOVER,)]
        await cancel_suspended(interface)
    assert app.notes == ["cancelled", "cleaned up"]
    assert app.handed_over == [True]


@pytest.mark.parametrize("settings", [SILENT, SUSPEND])
@pytest.mark.parametrize("listen", WAYS)
async def test_a_client_that_leaves_is_no_hand_over(
    listen: Callable[[Any, Any], Awaitable[None]], settings: dict[str, Any]
) -> None:
    app = Leaves(listen)
    async with running(app, **settings) as interface:
        number = await interface.accepted()
        interface.post((EVENT, number, 1, 0, 1, events.WEBSOCKET_DISCONNECT, 1001, ""))
        await until(lambda: not interface.worker.gauges()["sessions"])
    assert app.notes == ["left", "cleaned up"]
    assert app.handed_over == [False]


@pytest.mark.parametrize("settings", [SILENT, SUSPEND])
@pytest.mark.parametrize("listen", WAYS)
async def test_a_superseded_run_is_cancelled(
    listen: Callable[[Any, Any], Awaitable[None]], settings: dict[str, Any]
) -> None:
    """The process lives on, and must not collect runs."""
    app = Leaves(listen)
    async with running(app, **settings) as interface:
        await interface.accepted()
        interface.numbers -= 1
        number = interface.open("websocket", attempt=2, resumed=True)
        await until(lambda: "cleaned up" in app.notes)
        await until(lambda: app.runs == [1, 2])
        assert app.notes == ["cancelled", "cleaned up"]
        assert app.handed_over == [True]
        assert interface.worker.suspended == []
        interface.stop.set()
        await handed_over(interface, number)
        if settings is SUSPEND:
            await cancel_suspended(interface)


async def test_a_busy_run_finishes_its_event_first() -> None:
    go, busy = asyncio.Event(), asyncio.Event()

    async def listen(receive: Any, send: Any) -> None:
        while (event := await receive())["type"] == "websocket.receive":
            busy.set()
            await go.wait()
            await send({"type": "websocket.send", "text": event["text"]})

    app = Leaves(listen)
    async with running(app, **SILENT) as interface:
        number = await interface.accepted()
        interface.send_texts(number, "a", "b")
        await busy.wait()
        await interface.drain()
        await asyncio.sleep(0.05)
        assert app.notes == []
        go.set()
        assert await handed_over(interface, number) == 1, "the next run gets the second event"
        assert (events.MESSAGE_SENT, "a") in interface.events(number)
    assert app.notes == ["cancelled", "cleaned up"]


async def test_a_dispatcher_finishes_what_is_no_event_of_the_client() -> None:
    """The main task handles a message of a group while another task waits in `receive`."""
    busy = asyncio.Event()

    async def listen(receive: Any, send: Any) -> None:
        listening = asyncio.ensure_future(receive())
        busy.set()
        await asyncio.sleep(0.03)
        await send({"type": "websocket.send", "text": "of the group"})
        try:
            await asyncio.wait([listening])
        finally:
            listening.cancel()

    app = Leaves(listen)
    async with running(app, **SILENT) as interface:
        number = await interface.accepted()
        await busy.wait()
        interface.stop.set()
        await handed_over(interface, number)
        assert (events.MESSAGE_SENT, "of the group") in interface.events(number)
    assert app.notes == ["cancelled", "cleaned up"]


async def test_the_client_that_leaves_meanwhile_is_seen_to_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "OTHER_TASKS_SECONDS", 30.0)
    app = Leaves(in_a_child_of_a_task_group)
    async with running(app, **SILENT) as interface:
        number = await interface.accepted()
        await interface.drain()
        interface.post((EVENT, number, 1, 0, 1, events.WEBSOCKET_DISCONNECT, 1001, ""))
        await until(lambda: "cleaned up" in app.notes)
    assert app.notes == ["left", "cleaned up"]


async def test_what_a_clean_up_sends_is_dropped_and_does_not_raise() -> None:
    """An app may send to every client it knows, also to those that were handed over."""
    known: dict[int, Any] = {}
    sent: list[int] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "websocket"
        number = len(known)
        known[number] = send
        connection = asgibus.connection(scope)
        await receive()
        await send({"type": "websocket.accept"})
        try:
            await receive()
        finally:
            await connection.group_discard("room")
            connection.state["cleaned"] = True
            for each in known.values():
                await each(TEXT)
            await send({"type": "websocket.close"})
            sent.append(number)

    async with running(app, **SILENT, drain_period=0.05) as interface:
        numbers = [await interface.accepted() for _ in range(3)]
        interface.stop.set()
        for number in numbers:
            await handed_over(interface, number)
        answers = [interface.events(number) for number in numbers]
        await asyncio.wait_for(interface.ended, 30)
    assert sorted(sent) == [0, 1, 2]
    for answer in answers:
        codes = [event[0] for event in answer]
        assert codes[0] == events.ACCEPT
        assert codes[-2:] == [events.SAVE_STATE, events.HANDOVER]
        assert unpack(answer[-2][1]) == {"cleaned": True}
    # A client that is not handed over yet gets what the clean-up of another one sends.
    assert [answers[number].count((events.MESSAGE_SENT, "late")) for number in sent] == [0, 1, 2]
    assert interface.worker.counts()["late message"] == 6


async def test_an_app_that_goes_on_gets_a_disconnect() -> None:
    seen: list[str] = []

    async def stubborn(scope: Any, receive: Any, send: Any) -> None:
        await accept(scope, receive, send)
        while not seen or seen[-1] != "websocket.disconnect":
            try:
                seen.append((await receive())["type"])
            except asyncio.CancelledError:
                seen.append("cancelled")

    async with running(stubborn, **SILENT) as interface:
        number = await interface.accepted()
        interface.stop.set()
        await handed_over(interface, number)
    assert seen == ["cancelled", "websocket.disconnect"]


async def test_a_clean_up_that_waits_for_its_reader_is_helped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "FORCE_SECONDS", 0.2)
    seen: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await accept(scope, receive, send)
        reader = asyncio.ensure_future(receive())
        try:
            await asyncio.sleep(1000)
        finally:
            seen.append((await reader)["type"])

    async with running(app, **SILENT) as interface:
        number = await interface.accepted()
        interface.stop.set()
        await handed_over(interface, number)
    assert seen == ["websocket.disconnect"]


async def test_an_app_without_receive_is_cancelled_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "FORCE_SECONDS", 0.05)
    ends: list[str] = []

    async def ticker(scope: Any, receive: Any, send: Any) -> None:
        await accept(scope, receive, send)
        try:
            while True:
                await send({"type": "websocket.send", "text": "tick"})
                await asyncio.sleep(0.002)
        except asyncio.CancelledError:
            ends.append("cancelled")
            raise

    async with running(ticker, **SILENT) as interface:
        number = await interface.accepted(window=1_000_000)
        interface.send_texts(number, "not taken")
        interface.stop.set()
        assert await handed_over(interface, number) == 0
    assert ends == ["cancelled"]


async def test_an_app_that_closes_is_not_handed_over() -> None:
    go = asyncio.Event()
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await accept(scope, receive, send)
        await go.wait()
        await send({"type": "websocket.close", "code": 4000})
        seen.append(await receive())

    async with running(app, **SILENT) as interface:
        number = await interface.accepted()
        await interface.drain()
        go.set()
        assert (await interface.answer(number))[-1] == (events.CLOSE, 4000, "")
        interface.acknowledge(number)
    assert seen == [{"type": "websocket.disconnect", "code": 4000, "reason": ""}]


async def test_an_error_in_a_clean_up_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await accept(scope, receive, send)
        try:
            await receive()
        finally:
            raise ArithmeticError("in the clean-up")

    async with running(app, **SILENT) as interface:
        number = await interface.accepted()
        interface.stop.set()
        await handed_over(interface, number)
    assert "ArithmeticError: in the clean-up" in caplog.text
    caplog.clear()


async def test_without_resume_nothing_is_silent() -> None:
    app = Leaves(until_disconnect)
    async with running(app, handover="silent") as interface:
        number = await interface.accepted()
        interface.stop.set()
        assert (await interface.answer(number))[-1] == (events.CLOSE, 1012, "")
        interface.acknowledge(number)
    assert app.notes == ["left", "cleaned up"]


async def test_a_client_that_leaves_after_the_hand_over_is_left_to_the_next_run() -> None:
    go = asyncio.Event()

    async def listen(receive: Any, send: Any) -> None:
        try:
            await receive()
        finally:
            await go.wait()

    app = Leaves(listen)
    async with running(app, **SILENT) as interface:
        number = await interface.accepted()
        await interface.drain()
        interface.post((EVENT, number, 1, 0, 1, events.WEBSOCKET_DISCONNECT, 1001, ""))
        go.set()
        assert await handed_over(interface, number) == 0
    assert app.notes == ["cancelled", "cleaned up"]


async def test_a_task_that_others_wait_for_is_not_cancelled() -> None:
    """Runs of several clients may wait for one task of the app."""
    stopping = asyncio.create_task(asyncio.sleep(1000))

    async def listen(receive: Any, send: Any) -> None:
        waiting = {asyncio.create_task(until_disconnect(receive, send)), stopping}
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)

    waiter = asyncio.create_task(asyncio.wait([stopping]))
    app = Leaves(listen)
    async with running(app, **SILENT) as interface:
        number = await interface.accepted()
        interface.stop.set()
        await handed_over(interface, number)
    assert app.notes == ["cancelled", "cleaned up"]
    assert not stopping.done()
    stopping.cancel()
    await waiter


async def test_the_awaited_tasks_of_a_coroutine() -> None:
    """Fail where the source of asyncio changes in a way that matters."""
    one, two = (asyncio.ensure_future(asyncio.sleep(1000)) for _ in range(2))

    async def inner() -> None:
        await asyncio.wait([one, two])

    async def outer() -> None:
        await inner()

    run = outer()
    task = asyncio.create_task(run)
    await asyncio.sleep(0)
    assert awaited_tasks(run) == {one, two}
    assert awaited_tasks(one.get_coro()) == set()
    assert awaited_tasks(object()) == set()
    for each in (task, one, two):
        each.cancel()
    await asyncio.wait([task, one, two])
    assert awaited_tasks(run) == set()


async def test_a_run_sees_that_its_worker_drains() -> None:
    seen: list[tuple[str, bool]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] != "lifespan"
        connection = asgibus.connection(scope)
        if scope["type"] == "websocket":
            await echo(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while not connection.draining:
            seen.append((scope["type"], connection.draining))
            await send({"type": "http.response.body", "body": b"part", "more_body": True})
            await asyncio.sleep(0.005)
        await send({"type": "http.response.body", "body": b"the rest elsewhere"})

    async with running(app, **SILENT) as interface:
        number = interface.open("http", window=1_000_000)
        await until(lambda: len(seen) > 2)
        interface.stop.set()
        assert (await interface.answer(number))[-1] == (events.RESPONSE_END, b"the rest elsewhere")
    assert set(seen) == {("http", False)}


async def test_a_busy_run_is_suspended_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "FORCE_SECONDS", 0.05)
    go = asyncio.Event()
    notes: list[str] = []

    async def listen(receive: Any, send: Any) -> None:
        await receive()
        await go.wait()
        await send(TEXT)
        notes.append("sent")
        await receive()

    app = Leaves(listen)
    async with running(app, **SUSPEND) as interface:
        number = await interface.accepted()
        interface.send_texts(number, "a")
        await interface.drain()
        assert await handed_over(interface, number) == 0, "the next run gets the event"
        go.set()
        await until(lambda: notes)
        await asyncio.sleep(0.02)
        assert app.notes == []
        assert interface.worker.counts()["late message"] == 1
        await cancel_suspended(interface)


async def test_calls_of_a_suspended_run_do_not_return(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that raised would look to an app like a client that leaves."""
    monkeypatch.setattr(worker_module, "FORCE_SECONDS", 0.05)
    go = asyncio.Event()
    notes: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "websocket"
        connection = asgibus.connection(scope)
        await receive()
        await send({"type": "websocket.accept"})

        async def later(call: Callable[[], Awaitable[None]]) -> None:
            await go.wait()
            await call()

        calls = connection.group_add("room"), later(connection.save_state), later(lambda: connection.group_add("room"))
        try:
            async with asyncio.TaskGroup() as tasks:
                for call in calls:
                    tasks.create_task(call)
        finally:
            notes.append("ended")

    async with running(app, **SUSPEND) as interface:
        number = await interface.accepted()
        interface.stop.set()
        await handed_over(interface, number)
        go.set()
        await asyncio.sleep(0.05)
        assert notes == []
        await cancel_suspended(interface)


async def test_an_error_of_an_app_that_may_be_suspended_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await accept(scope, receive, send)
        raise ArithmeticError("of the app")

    async with running(app, **SUSPEND) as interface:
        number = await interface.accepted()
        assert (await interface.answer(number))[-1] == (events.CLOSE, 1011, "")
        interface.acknowledge(number)
    assert "ArithmeticError: of the app" in caplog.text
    caplog.clear()


async def test_runs_are_not_suspended_to_level_the_shares() -> None:
    async with running(Leaves(until_disconnect), **SUSPEND) as interface:
        await interface.accepted()
        assert not interface.worker._movable
        interface.stop.set()
        await handed_over(interface, 1)
        await cancel_suspended(interface)
