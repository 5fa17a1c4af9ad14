"""The app's start-up and shut-down, by the ASGI "Lifespan Protocol"."""

import asyncio
import logging
import traceback
from typing import Any

import anyio
import pytest

from asgibus.worker import lifespan as lifespan_module
from asgibus.worker.lifespan import LifespanError, Mode, lifespan
from support.bus import until

pytestmark = pytest.mark.anyio

received: list[Any] = []


@pytest.fixture(autouse=True)
def _forget() -> None:
    received.clear()


async def good(scope: Any, receive: Any, send: Any) -> None:
    received.append(scope)
    received.append(await receive())
    scope["state"]["db"] = "pool"
    await send({"type": "lifespan.startup.complete"})
    received.append(await receive())
    await send({"type": "lifespan.shutdown.complete"})


@pytest.mark.parametrize("mode", ["auto", "on"])
async def test_an_app_with_a_lifespan(mode: Mode) -> None:
    async with lifespan(good, mode, anyio.Event()) as running:
        assert running.state == {"db": "pool"}
        assert [event["type"] for event in received[1:]] == ["lifespan.startup"]
    assert [event["type"] for event in received[1:]] == ["lifespan.startup", "lifespan.shutdown"]
    assert received[0]["type"] == "lifespan"
    assert received[0]["asgi"] == {"version": "3.0", "spec_version": "2.0"}


async def test_off_does_not_call_the_app() -> None:
    async with lifespan(good, "off", anyio.Event()) as running:
        assert running.state == {}
    assert received == []


async def refuses(scope: Any, receive: Any, send: Any) -> None:
    raise ValueError("only http")


async def test_auto_continues_without_a_lifespan(caplog: pytest.LogCaptureFixture) -> None:
    async with lifespan(refuses, "auto", anyio.Event()) as running:
        assert running.state == {}
    assert "Traceback" not in caplog.text


async def breaks_in_its_start_up(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    raise RuntimeError("no database")


async def takes_it_for_a_socket(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "websocket.accept"})


@pytest.mark.parametrize(("app", "logged"), [(breaks_in_its_start_up, True), (takes_it_for_a_socket, False)])
async def test_auto_logs_an_error_in_the_start_up_and_continues(
    app: Any, logged: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async with lifespan(app, "auto", anyio.Event()) as running:
        assert running.state == {}
    assert ("RuntimeError: no database" in caplog.text) == logged
    assert ("the app raised in its start-up" in caplog.text) == logged


async def test_on_takes_an_error_as_a_failure() -> None:
    with pytest.raises(LifespanError, match=r"the app's start-up failed: ValueError: only http"):
        async with lifespan(refuses, "on", anyio.Event()):
            pass


async def returns(scope: Any, receive: Any, send: Any) -> None:
    await receive()


async def test_a_returned_app_has_no_lifespan() -> None:
    for mode in ("auto", "on"):
        async with lifespan(returns, mode, anyio.Event()) as running:  # type: ignore[arg-type]
            assert running.state == {}


@pytest.mark.parametrize("mode", ["auto", "on"])
@pytest.mark.parametrize(("message", "expected"), [("no db", "failed: no db$"), ("", "failed$")])
async def test_a_failed_start_up(mode: Mode, message: str, expected: str) -> None:
    async def fails(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": message})
        raise RuntimeError("as Starlette does")

    with pytest.raises(LifespanError, match=expected):
        async with lifespan(fails, mode, anyio.Event()):
            pass


async def test_a_failed_start_up_with_a_traceback_as_its_message() -> None:
    """The error is the last line of the traceback that Starlette sends as its message."""

    async def fails(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        try:
            raise RuntimeError("no db")
        except RuntimeError:
            await send({"type": "lifespan.startup.failed", "message": traceback.format_exc()})
            raise

    with pytest.raises(LifespanError) as raised:
        async with lifespan(fails, "auto", anyio.Event()):
            pass
    assert str(raised.value) == "the app's start-up failed: RuntimeError: no db"
    assert raised.value.trace.startswith("Traceback (most recent call last)")


async def test_an_early_failed_shut_down_is_logged_at_once(caplog: pytest.LogCaptureFixture) -> None:
    async def fails(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await send({"type": "lifespan.shutdown.failed", "message": "lost the database"})

    async with lifespan(fails, "auto", anyio.Event()):
        await anyio.wait_all_tasks_blocked()
        assert "the app's shut-down failed: lost the database" in caplog.text
    assert caplog.text.count("lost the database") == 1


async def test_an_app_waiting_after_its_failed_start_up_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifespan_module, "END_SECONDS", 0.05)
    ended = asyncio.Event()

    async def waits(scope: Any, receive: Any, send: Any) -> None:
        try:
            await receive()
            await send({"type": "lifespan.startup.failed"})
            await receive()
        finally:
            ended.set()

    with pytest.raises(LifespanError):
        async with lifespan(waits, "auto", anyio.Event()):
            pass
    assert ended.is_set()


async def test_a_failed_shut_down_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def fails(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.failed", "message": "still busy"})

    async with lifespan(fails, "auto", anyio.Event()):
        pass
    assert "the app's shut-down failed: still busy" in caplog.text


async def test_a_later_error_is_logged_and_does_not_end_the_worker(caplog: pytest.LogCaptureFixture) -> None:
    async def fails(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        raise ValueError("later")

    with caplog.at_level(logging.ERROR):
        async with lifespan(fails, "auto", anyio.Event()):
            await asyncio.sleep(0)
    assert "the app raised in its lifespan" in caplog.text
    assert "ValueError: later" in caplog.text


async def test_an_endless_shut_down_is_cut(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(lifespan_module, "SHUTDOWN_SECONDS", 0.05)

    async def waits(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await asyncio.get_running_loop().create_future()

    async with asyncio.timeout(30), lifespan(waits, "auto", anyio.Event()):
        pass
    assert "did not end within 0.05 s and is cancelled" in caplog.text


async def test_an_unknown_event_raises_in_send() -> None:
    raised: list[BaseException] = []

    async def odd(scope: Any, receive: Any, send: Any) -> None:
        for event in ({"type": "http.response.start", "status": 200}, {}):
            try:
                await send(event)
            except ValueError as error:
                raised.append(error)
        await good(scope, receive, send)

    async with lifespan(odd, "auto", anyio.Event()) as running:
        assert running.state == {"db": "pool"}
    assert [str(error) for error in raised] == [
        "unknown lifespan event 'http.response.start'",
        "unknown lifespan event None",
    ]


# The notice before the shut-down.


async def test_an_app_is_told_before_its_shut_down() -> None:
    async def knows(scope: Any, receive: Any, send: Any) -> None:
        assert scope["extensions"] == {"lifespan.shutdown.notice": {}}
        while (event := await receive())["type"] != "lifespan.shutdown":
            received.append(event["type"])
            if event["type"] == "lifespan.startup":
                await send({"type": "lifespan.startup.complete"})
        await send({"type": "lifespan.shutdown.complete"})

    async with lifespan(knows, "on", anyio.Event(), notice=True) as running:
        running.notify()
        await until(lambda: len(received) == 2)
    assert received == ["lifespan.startup", "lifespan.shutdown.notice"]


async def test_no_app_is_told_without_the_option() -> None:
    async with lifespan(good, "on", anyio.Event()) as running:
        assert received[0]["extensions"] == {}
        running.notify()
        await asyncio.sleep(0)
    assert [event["type"] for event in received[1:]] == ["lifespan.startup", "lifespan.shutdown"]


async def test_an_app_that_takes_the_notice_for_the_shut_down_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async with lifespan(good, "on", anyio.Event(), notice=True) as running:
        running.notify()
        await until(lambda: "--shutdown-notice must be left out" in caplog.text)
        running.notify()
    assert len(caplog.records) == 1


@pytest.mark.parametrize("mode", ["off", "auto"])
async def test_an_app_without_a_lifespan_is_not_told(mode: Mode) -> None:
    async with lifespan(refuses, mode, anyio.Event(), notice=True) as running:
        running.notify()
