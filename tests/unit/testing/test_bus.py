"""The bus of a test: clients, groups, errors and cleanup."""

import asyncio
import sys
import time
import warnings
from typing import Any

import anyio
import httpx
import pytest
import uvloop
from websockets.exceptions import ConnectionClosed, InvalidStatus

from asgibus.layers import InMemoryChannelLayer
from asgibus.testing import Bus
from asgibus.worker import base
from asgibus.worker.loader import ApplicationError
from support.bus import until
from support.bus_app import App
from support.deadline import in_time

pytestmark = pytest.mark.anyio


async def hello(scope: Any, receive: Any, send: Any) -> None:
    assert scope["type"] == "http"
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"hello"})


# Apps.


class Older:
    def __init__(self, scope: Any) -> None:
        self.scope = scope

    async def __call__(self, receive: Any, send: Any) -> None:
        await hello(self.scope, receive, send)


def synchronous(environ: Any, start_response: Any) -> list[bytes]:
    if environ["PATH_INFO"] == "/broken":
        raise ZeroDivisionError
    start_response("200 OK", [])
    return [b"hello"]


@pytest.mark.parametrize("app", [hello, Older, synchronous])
async def test_apps_of_each_interface(app: Any) -> None:
    async with Bus(app) as bus:
        assert (await bus.http.get("/")).text == "hello"


async def test_errors_of_a_wsgi_app_fail_the_test() -> None:
    async with Bus(synchronous, interface="wsgi") as bus:
        assert (await bus.http.get("/broken")).status_code == 500
        assert isinstance(bus.errors.pop(), ZeroDivisionError)


@pytest.mark.parametrize("app", ["main:app", lambda one, two, three, four: None])
async def test_other_values_than_apps_are_rejected(app: Any) -> None:
    with pytest.raises(ApplicationError, match="the app '"):
        async with Bus(app):
            pass


# Clients.


async def test_clients_of_http_and_websocket() -> None:
    async with Bus(App()) as bus:
        assert (await bus.http.get("/")).text == "worker 1"
        async with httpx.AsyncClient() as other:
            assert (await other.get(bus.url + "/")).text == "worker 1"
        async with bus.websocket("/") as socket:
            await socket.send("hello")
            assert await socket.receive() == "hello 1"


async def test_a_websocket_has_the_values_of_its_handshake() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "websocket"
        assert dict(scope["headers"])[b"x-who"] == b"me"
        await send({"type": "websocket.accept", "subprotocol": scope["subprotocols"][1]})
        await send({"type": "websocket.send", "bytes": scope["query_string"]})
        await send({"type": "websocket.close", "code": 4001})

    async with (
        Bus(app) as bus,
        bus.websocket("/?room=1", subprotocols=["a", "b"], additional_headers={"x-who": "me"}) as socket,
    ):
        assert socket.subprotocol == "b"
        assert await socket.receive() == b"room=1"
        with pytest.raises(ConnectionClosed):
            await socket.receive()
        assert await socket.closed() == 4001


async def test_a_websocket_rejected_by_the_app() -> None:
    async with Bus(App()) as bus:
        with pytest.raises(InvalidStatus, match="403"):
            async with bus.websocket("/refuse"):
                pytest.fail("it was refused")


async def test_the_close_code_of_a_client_reaches_the_app() -> None:
    app = App()
    async with Bus(app) as bus, bus.websocket("/") as socket:
        await socket.close(4002)
        await app.until("disconnect 4002")


async def test_no_client_waits_without_end() -> None:
    app = App()
    async with Bus(app, timeout=0.2) as bus:
        with pytest.raises(httpx.ReadTimeout):
            await bus.http.get("/hold")
        async with bus.websocket("/", open_timeout=5) as socket:
            with pytest.raises(TimeoutError, match=r"nothing came within 0\.2 s"):
                await socket.receive()
            with pytest.raises(TimeoutError, match="the server did not close this"):
                await socket.closed()
            await socket.send("late")
            assert await socket.receive() == "late 1"
        app.release.set()


async def test_an_unserved_socket_has_no_worker() -> None:
    async with Bus(App(), resume=True) as bus, bus.websocket("/") as socket:
        await bus.worker_of(socket).kill()
        with pytest.raises(LookupError, match="no worker serves this socket now"):
            bus.worker_of(socket)


async def test_broadcasts_cross_buses_of_one_layer() -> None:
    layer = InMemoryChannelLayer()
    async with (
        Bus(App(), layer=layer) as first_bus,
        Bus(App(), layer=layer) as second_bus,
        first_bus.websocket("/") as first,
        second_bus.websocket("/") as second,
    ):
        for socket in (first, second):
            await socket.send("here")
            assert await socket.receive() == "here 1"
        await first_bus.layer.group_send("all", {"type": "websocket.send", "text": "to all"})
        assert await first.receive() == await second.receive() == "to all"


# Errors.


async def test_an_unsendable_broadcast_is_logged_once_per_type(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with Bus(App()) as bus, bus.websocket("/") as socket:
        await socket.send("join")
        assert await socket.receive() == "join 1"
        for kind in ("chat.message", "chat.message", "websocket.send"):
            await bus.layer.group_send("all", {"type": kind, "text": "hello"})
        assert await socket.receive() == "hello"
    (line,) = [record.getMessage() for record in caplog.records if "was dropped" in record.getMessage()]
    assert line.startswith("'chat.message' to group 'all' was dropped for 1 members here")


async def test_a_blocked_event_loop_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(base, "WATCH_SECONDS", 0.05)
    monkeypatch.setattr(base, "STALL_SECONDS", 0.5)

    async def blocks(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["path"] == "/block":
            time.sleep(0.6)  # noqa: ASYNC251
        await hello(scope, receive, send)

    async with Bus(blocks) as bus:
        await bus.http.get("/")
        assert "nothing ran here" not in caplog.text
        await bus.http.get("/block")
        await until(lambda: "nothing ran here for 1 s: the app blocked the event loop" in caplog.text)


async def test_errors_of_the_app_fail_the_test() -> None:
    with pytest.raises(ExceptionGroup, match="the app raised") as caught:
        async with Bus(App()) as bus:
            assert (await bus.http.get("/raise")).status_code == 500
            async with bus.websocket("/") as socket:
                await socket.send("raise")
                assert await socket.receive() == "somebody left"
                assert await socket.closed() == 1011
    assert [type(error) for error in caught.value.exceptions] == [ArithmeticError, ArithmeticError]


async def test_expected_errors_are_removed() -> None:
    async with Bus(App()) as bus:
        assert (await bus.http.get("/raise")).status_code == 500
        assert isinstance(bus.errors.pop(), ArithmeticError)


async def test_a_failed_test_has_the_errors_of_the_app_in_its_notes() -> None:
    with pytest.raises(AssertionError, match="the failure of the test") as caught:
        async with Bus(App()) as bus:
            assert (await bus.http.get("/raise")).status_code == 200, "the failure of the test"
    (note,) = caught.value.__notes__
    assert "Meanwhile the app raised" in note
    assert "ArithmeticError: as asked" in note


async def test_disconnects_and_missing_lifespans_are_no_errors() -> None:
    sending = asyncio.Event()
    errors: list[OSError] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            raise ValueError(scope["type"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        sending.set()
        try:
            while True:
                await send({"type": "http.response.body", "body": b"more", "more_body": True})
                await asyncio.sleep(0)
        except OSError as error:
            errors.append(error)
            raise

    async with Bus(app) as bus, bus.http.stream("GET", "/"):
        await sending.wait()
    assert errors


async def test_an_error_in_the_app_s_shut_down_fails_the_test() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        raise ArithmeticError("as asked")

    with pytest.raises(ExceptionGroup) as caught:
        async with Bus(app):
            pass
    assert isinstance(caught.value.exceptions[0], ArithmeticError)


async def test_unknown_options_are_refused() -> None:
    with pytest.raises(TypeError, match=r"unknown options: colour, port; there are .*resume"):
        Bus(hello, port=80, colour="red")
    async with Bus(hello) as bus:
        with pytest.raises(TypeError, match="unknown options: connect_timeout"):
            await bus.add_worker(connect_timeout=1)


async def test_a_missing_httpx_is_an_error_with_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "httpx", None)
    async with Bus(hello) as bus:
        with pytest.raises(ImportError, match=r"pip install 'asgibus\[testing\]'"):
            _ = bus.http


async def test_a_bus_is_entered_once() -> None:
    bus = Bus(hello)
    async with bus:
        with pytest.raises(RuntimeError, match="entered once"):
            await bus.__aenter__()


def test_entering_outside_asyncio_raises() -> None:
    with pytest.raises(RuntimeError, match='choose the backend "asyncio"'):
        Bus(hello).__aenter__().send(None)


# Event loops, and cleanup.


async def test_the_bus_leaves_no_task_and_no_listener() -> None:
    app = App()
    before = asyncio.all_tasks()
    factory = asyncio.get_running_loop().get_task_factory()
    async with Bus(app, workers=2, resume=True) as bus, bus.websocket("/") as socket:
        await bus.http.get("/stray")
        await bus.worker_of(socket).kill()
    assert asyncio.all_tasks() == before
    assert app.stray[0].cancelled()
    assert asyncio.get_running_loop().get_task_factory() is factory
    async with httpx.AsyncClient() as client:
        with pytest.raises(httpx.ConnectError):
            await client.get(bus.url)


async def test_a_cancelled_bus_ends_at_once() -> None:
    app = App()
    before = asyncio.all_tasks()
    start = asyncio.get_running_loop().time()
    with anyio.move_on_after(5) as scope:
        async with Bus(app, graceful_timeout=30) as bus, bus.websocket("/") as socket:
            await bus.http.get("/stray")
            await socket.send("hold")
            await app.until("hold")
            scope.cancel()
            await anyio.sleep(5)
    assert asyncio.all_tasks() == before
    in_time(asyncio.get_running_loop().time() - start, 5)


async def test_the_graceful_timeout_cuts_apps() -> None:
    start = asyncio.get_running_loop().time()
    async with Bus(App(), timeout=0.05, graceful_timeout=0.1) as bus:
        with pytest.raises(httpx.ReadTimeout):
            await bus.http.get("/hold")
    in_time(asyncio.get_running_loop().time() - start, 2)


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_bus_is_entered_in_one_task_and_exited_in_another(loop: str) -> None:
    factory = uvloop.new_event_loop if loop == "uvloop" else asyncio.new_event_loop
    bus = Bus(App(), workers=2, resume=True)

    async def use() -> None:
        async with bus.websocket("/") as socket:
            await socket.send("hello")
            assert await socket.receive() == "hello 1"
            await bus.worker_of(socket).kill()
            await socket.send("hello")
            assert await socket.receive() == "hello 1"
        assert (await bus.http.get("/")).status_code == 200

    async def leave() -> None:
        await bus.__aexit__(None, None, None)

    async def enter() -> None:
        await bus.__aenter__()

    with warnings.catch_warnings(), asyncio.Runner(debug=True, loop_factory=factory) as runner:
        warnings.simplefilter("error")
        for step in (enter, use, leave):  # as the fixtures of pytest-asyncio do
            runner.run(step())
