"""Virtual workers that are killed, drained and delayed."""

import asyncio
from contextlib import AsyncExitStack, suppress
from typing import Any

import httpx
import pytest

import asgibus
from asgibus.layers import InMemoryChannelLayer
from asgibus.protocol import retry
from asgibus.protocol.retry import CRASH_LIMIT
from asgibus.testing import Bus, VirtualWorker
from asgibus.worker.lifespan import LifespanError
from support.bus import until
from support.bus_app import App
from support.deadline import in_time

pytestmark = pytest.mark.anyio


def busy(bus: Bus) -> VirtualWorker:
    """Return the worker that serves a connection."""
    (worker,) = [worker for worker in bus.workers if worker.serving]
    return worker


# Killed.


async def test_a_resumable_socket_survives_its_worker_with_its_state() -> None:
    async with Bus(App(), workers=2, resume=True) as bus, bus.websocket("/") as socket:
        await socket.send("save")
        assert await socket.receive() == "save 1"
        await socket.send("unsaved")
        assert await socket.receive() == "unsaved 2"

        first = bus.worker_of(socket)
        await first.kill()
        await socket.send("again")

        assert await socket.receive() == "again 2"
        assert bus.worker_of(socket) is not first
        assert not first.alive


async def test_a_killed_worker_sends_nothing_more() -> None:
    app = App()
    async with Bus(app, workers=2, resume=True) as bus, bus.websocket("/") as socket, bus.websocket("/") as other:
        for each in (socket, other):
            await each.send("hello")
            assert await each.receive() == "hello 1"
        workers = {bus.worker_of(socket), bus.worker_of(other)}
        for worker in workers:
            await worker.kill()
        assert "finally" in app.log  # `finally` blocks run after the kill
        assert "finally sent" not in app.log

        await bus.add_worker()
        for each in (socket, other):
            await each.send("here")
            assert await each.receive() == "here 1"  # without a disconnect


async def test_an_app_of_a_killed_worker_neither_answers_nor_raises() -> None:
    began = asyncio.Queue[str]()
    release = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        await began.put("run")
        content = b"killed"
        try:
            await release.wait()
            content = b"answer"
        finally:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": content})
            if content == b"killed":
                raise ArithmeticError("after the kill")

    async with Bus(app) as bus, asyncio.TaskGroup() as tasks:
        answer = tasks.create_task(bus.http.get("/"))
        await began.get()
        await bus.workers[0].kill()
        await bus.add_worker()
        await began.get()
        release.set()
        assert (await answer).text == "answer"


async def test_without_resume_a_socket_is_closed_for_a_restart() -> None:
    async with Bus(App(), workers=2) as bus, bus.websocket("/") as socket:
        await bus.worker_of(socket).kill()
        assert await socket.closed() == 1012


async def test_a_message_is_repeated_up_to_the_crash_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(retry, "FIRST_DELAY", 0.0)
    app = App()
    async with Bus(app, workers=CRASH_LIMIT + 1, resume=True) as bus, bus.websocket("/") as socket:
        await socket.send("hold")
        for run in range(1, CRASH_LIMIT + 1):
            await app.until("hold", run)
            await bus.worker_of(socket).kill()
        assert await socket.closed() == 1011
    assert app.log.count("hold") == CRASH_LIMIT


@pytest.mark.parametrize("method", ["GET", "PUT"])
async def test_an_idempotent_request_is_run_again(method: str) -> None:
    app = App()
    async with Bus(app, workers=2) as bus, asyncio.TaskGroup() as tasks:
        answer = tasks.create_task(bus.http.request(method, "/hold"))
        await app.until("hold")
        await busy(bus).kill()
        await app.until("hold", 2)
        app.release.set()
        assert (await answer).status_code == 200


async def test_a_post_of_a_killed_worker_is_a_bad_gateway() -> None:
    app = App()
    async with Bus(app, workers=2) as bus, asyncio.TaskGroup() as tasks:
        answer = tasks.create_task(bus.http.post("/hold", content="pay"))
        await app.until("hold")
        await busy(bus).kill()
        assert (await answer).status_code == 502
    assert app.log.count("hold") == 1


async def test_a_begun_response_is_cut_off() -> None:
    app = App()
    async with Bus(app, workers=2) as bus, asyncio.TaskGroup() as tasks:

        async def kill() -> None:
            await app.until("half sent")
            await busy(bus).kill()

        tasks.create_task(kill())
        with pytest.raises(httpx.RemoteProtocolError):
            await bus.http.get("/half")


async def test_tasks_of_the_app_end_with_its_worker() -> None:
    app = App()
    async with Bus(app) as bus:
        await bus.http.get("/stray")
        await bus.workers[0].kill()
        assert app.stray[0].cancelled()


async def test_an_app_can_kill_its_own_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "FIRST_DELAY", 0.0)
    deaths = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        deaths.append(busy(bus))
        await busy(bus).kill()
        deaths.clear()

    async with Bus(app, workers=CRASH_LIMIT + 1) as bus:
        assert (await bus.http.get("/")).status_code == 502
    assert len(set(deaths)) == CRASH_LIMIT


async def test_an_uncancellable_app_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asgibus.testing.tasks.CANCEL_SECONDS", 0.05)
    waiting = asyncio.Event()
    enough = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        waiting.set()
        while not enough.is_set():
            with suppress(asyncio.CancelledError):
                await enough.wait()

    async with Bus(app, workers=2) as bus, asyncio.TaskGroup() as tasks:
        answer = tasks.create_task(bus.http.post("/"))
        await waiting.wait()
        killing = tasks.create_task(busy(bus).kill())
        await until(lambda: bus.errors, what="the error")
        assert "goes on for" in str(bus.errors.pop())
        enough.set()
        await killing
        assert (await answer).status_code == 502


async def test_the_second_kill_of_a_worker_does_nothing() -> None:
    async with Bus(App(), workers=2) as bus:
        await bus.workers[0].drain()
        await bus.workers[0].kill()
        await bus.workers[1].kill()
        await bus.workers[1].kill()
        await bus.workers[1].drain()
        assert [worker.alive for worker in bus.workers] == [False, False]


# Drained.


async def test_a_drain_hands_sockets_over_with_their_state() -> None:
    app = App()
    async with Bus(app, workers=2, resume=True) as bus, bus.websocket("/") as socket:
        await socket.send("unsaved")
        assert await socket.receive() == "unsaved 1"
        first = bus.worker_of(socket)

        await first.drain()
        assert app.log.count("disconnect 1012") == app.log.count("shut down") == 1
        await socket.send("again")

        assert await socket.receive() == "somebody left"  # sent by the run that got a disconnect
        assert await socket.receive() == "again 2"
        assert bus.worker_of(socket) is not first


async def test_an_app_can_distinguish_a_hand_over_from_a_disconnect() -> None:
    ends: list[tuple[int, bool]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "websocket":
            raise ValueError("no lifespan")
        connection = asgibus.connection(scope)
        await receive()
        await send({"type": "websocket.accept"})
        assert not connection.handed_over
        while (event := await receive())["type"] != "websocket.disconnect":
            await send({"type": "websocket.send", "text": event["text"]})
        ends.append((event["code"], connection.handed_over))

    async with Bus(app, resume=True) as bus, bus.websocket("/") as socket:
        await socket.send("hello")
        assert await socket.receive() == "hello"
        await bus.add_worker()
        await bus.workers[0].drain()
        assert ends == [(1012, True)]
        await socket.send("again")
        assert await socket.receive() == "again"
        await socket.close()
        await until(lambda: ends == [(1012, True), (1000, False)])

    async with AsyncExitStack() as sockets, Bus(app, resume=True) as bus:
        socket = await sockets.enter_async_context(bus.websocket("/"))
        await socket.send("hello")
        assert await socket.receive() == "hello"
    assert ends[2:] == [(1012, False)]  # the interface server has stopped and closed the socket

    async with Bus(app) as bus, bus.websocket("/") as socket:
        await socket.send("hello")
        assert await socket.receive() == "hello"
        await bus.workers[0].drain()
        assert ends[3:] == [(1012, False)]  # without --resume there is no other run


async def test_a_drain_without_resume_closes_sockets() -> None:
    async with Bus(App()) as bus, bus.websocket("/") as socket:
        await bus.workers[0].drain()
        assert await socket.closed() == 1012


async def test_a_drain_finishes_requests() -> None:
    app = App()
    async with Bus(app) as bus, asyncio.TaskGroup() as tasks:
        answer = tasks.create_task(bus.http.get("/half"))
        await app.until("half sent")
        draining = tasks.create_task(bus.workers[0].drain())
        await bus.add_worker()
        assert (await bus.http.get("/")).text == "worker 2"
        assert bus.workers[0].alive
        app.release.set()
        assert (await answer).text == "half done"
        await draining
        assert not bus.workers[0].alive


async def test_a_draining_worker_can_be_killed() -> None:
    app = App()
    async with Bus(app, workers=2, graceful_timeout=30) as bus, asyncio.TaskGroup() as tasks:
        answer = tasks.create_task(bus.http.get("/hold"))
        await app.until("hold")
        worker = busy(bus)
        draining = tasks.create_task(worker.drain())
        await asyncio.sleep(0)
        await worker.kill()
        await draining
        await app.until("hold", 2)
        app.release.set()
        assert (await answer).status_code == 200


# Delayed.


async def test_a_delayed_worker_begins_later_and_receives_later_in_order() -> None:
    now = asyncio.get_running_loop().time
    async with Bus(App()) as bus:
        bus.workers[0].delay(0.3)
        start = now()
        async with bus.websocket("/") as socket:
            assert now() - start > 0.29
            in_time(now() - start, 3)
            start = now()
            await socket.send("first")
            bus.workers[0].delay(0)
            await socket.send("second")
            assert await socket.receive() == "first 1"
            assert now() - start > 0.29
            in_time(now() - start, 3)
            assert await socket.receive() == "second 2"
            start = now()
            await socket.send("third")
            assert await socket.receive() == "third 3"
            in_time(now() - start, 0.29)
        with pytest.raises(ValueError, match="0 or more"):
            bus.workers[0].delay(-1)


async def test_unstarted_claims_of_a_killed_worker_go_to_others() -> None:
    app = App()
    layer = InMemoryChannelLayer()
    async with Bus(app, layer=layer) as bus, asyncio.TaskGroup() as tasks:
        bus.workers[0].delay(60)
        answer = tasks.create_task(bus.http.get("/"))
        await until(lambda: layer._claimed, what="the claim")
        await bus.add_worker()
        assert app.log == []
        await bus.workers[0].kill()
        assert (await answer).text == "worker 2"


# Starts and ends of workers.


async def test_requests_wait_for_a_worker() -> None:
    async with Bus(App(), workers=0) as bus, asyncio.TaskGroup() as tasks:
        answer = tasks.create_task(bus.http.post("/"))
        await bus.add_worker()
        assert (await answer).text == "worker 1"


async def test_without_a_worker_requests_get_503() -> None:
    async with Bus(App(), workers=0, connect_timeout=0.01) as bus:
        assert (await bus.http.get("/")).status_code == 503


async def test_each_worker_has_a_start_up_and_a_killed_worker_no_shut_down() -> None:
    app = App()
    async with Bus(app, workers=3) as bus:
        assert app.counts["started"] == 3
        await bus.workers[0].kill()
        await bus.workers[1].drain()
        assert app.log == ["shut down"]
        assert (await bus.http.get("/")).text == "worker 3"
    assert app.log.count("shut down") == 2


async def test_a_factory_gives_each_worker_an_app() -> None:
    apps: list[App] = []

    def make() -> App:
        apps.append(App())
        return apps[-1]

    async with Bus(make, workers=2, factory=True) as bus:
        assert (await bus.http.get("/")).text == "worker 1"
    assert [app.counts["started"] for app in apps] == [1, 1]


async def test_a_failed_start_up_is_raised_at_the_start_of_the_worker() -> None:
    fails = True

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        if fails:
            await send({"type": "lifespan.startup.failed"})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()

    with pytest.raises(LifespanError, match="start-up failed"):
        async with Bus(app):
            pytest.fail("there is no bus")

    fails = False
    async with Bus(app) as bus:
        fails = True
        with pytest.raises(LifespanError, match="start-up failed"):
            await bus.add_worker()
        assert [worker.alive for worker in bus.workers] == [True, False]


async def test_workers_of_other_pools_and_of_channels() -> None:
    app = App()
    async with Bus(app, routes=(("/slow", "slow"),)) as bus:
        await bus.add_worker(pool="slow")
        assert (await bus.http.get("/slow")).text == "worker 2"
        assert (await bus.http.get("/fast")).text == "worker 1"

        for _ in range(2):
            await bus.add_worker(channels=("mail",))
        await bus.layer.send("mail", {"type": "mail", "text": "hold"})
        await app.until("message hold")
        await busy(bus).kill()
        await app.until("message hold", 2)
        app.release.set()
        await app.until("handled hold")
    assert app.log.count("handled hold") == 1
