"""Files that an app sends by path or descriptor: the bytes at the interface server, and errors."""

import errno
import io
import os
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import FileResponse

from asgibus.layers.frames import RESET
from asgibus.protocol import events
from asgibus.protocol.stream import PART
from asgibus.worker import sendfile
from support.bus import until
from support.worker_harness import running, status_and_body

pytestmark = pytest.mark.anyio

START: dict[str, Any] = {"type": "http.response.start", "status": 200, "headers": []}
BODY: dict[str, Any] = {"type": "http.response.body"}
CONTENT = bytes(range(256)) * 1000  # four parts, the last of them not whole
WINDOW = 1 << 20
Send = Callable[[dict[str, Any]], Awaitable[None]]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file.bin"
    path.write_bytes(CONTENT)
    return path


def path_send(path: Path | str) -> dict[str, Any]:
    return {"type": "http.response.pathsend", "path": str(path)}


def zero_copy_send(file: Any, **fields: Any) -> dict[str, Any]:
    return {"type": "http.response.zerocopysend", "file": file, **fields}


def sending(*sent: dict[str, Any]) -> Callable[[Any, Any, Send], Awaitable[None]]:
    """Return an app that sends these events."""

    async def app(scope: Any, receive: Any, send: Send) -> None:
        if scope["type"] == "http":
            for event in sent:
                await send(event)
        else:
            raise NotImplementedError

    return app


def lengths(answer: list[Any]) -> list[int]:
    parts = (events.RESPONSE, events.RESPONSE_BODY, events.RESPONSE_END)
    return [len(event[-1]) for event in answer if event[0] in parts]


async def test_a_path_is_read_in_parts(file: Path) -> None:
    async with running(sending(START, path_send(file))) as interface:
        answer = await interface.answer(interface.open(window=WINDOW))
        assert status_and_body(answer) == (200, CONTENT)
        assert lengths(answer) == [PART, PART, PART, len(CONTENT) - 3 * PART, 0]


async def test_a_small_file_of_known_length_is_one_event(tmp_path: Path) -> None:
    (tmp_path / "small").write_bytes(b"small")
    start = START | {"headers": [(b"content-length", b"5")]}
    async with running(sending(start, path_send(tmp_path / "small"))) as interface:
        assert await interface.answer(interface.open()) == [(events.RESPONSE, 200, b"content-length: 5\r\n", b"small")]


async def test_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    async with running(sending(START, path_send(tmp_path / "empty"))) as interface:
        assert status_and_body(await interface.answer(interface.open())) == (200, b"")


async def test_a_growing_file_is_sent_up_to_its_content_length(file: Path) -> None:
    start = START | {"headers": [(b"content-length", b"70000")]}
    async with running(sending(start, path_send(file))) as interface:
        assert status_and_body(await interface.answer(interface.open(window=WINDOW))) == (200, CONTENT[:70000])


async def test_a_shrunken_file_is_cut_off(file: Path) -> None:
    start = START | {"headers": [(b"content-length", b"%d" % (len(CONTENT) + 1))]}
    async with running(sending(start, path_send(file))) as interface:
        answer = await interface.answer(interface.open(window=WINDOW))
        assert answer[-1][0] == events.ABORT


async def test_a_head_request_reads_nothing(file: Path) -> None:
    start = START | {"headers": [(b"content-length", b"%d" % len(CONTENT))]}
    async with running(sending(start, path_send(file))) as interface:
        ((code, _, headers, body),) = await interface.answer(interface.open(method="HEAD"))
        assert (code, headers, body) == (events.RESPONSE, b"content-length: 256000\r\n", b"")


async def test_reading_waits_for_the_client(file: Path) -> None:
    async with running(sending(START, path_send(file))) as interface:
        number = interface.open(window=PART)
        await until(lambda: len(interface.events(number)) == 2, what="the first part")
        # The window is full by the first part; each acknowledgement lets one more through.
        for have in (2, 3):
            assert len(interface.events(number)) == have
            interface.acknowledge(number)
            await until(lambda have=have: len(interface.events(number)) == have + 1, what="the next part")
        interface.acknowledge(number)
        assert status_and_body(await interface.answer(number)) == (200, CONTENT)


async def test_a_disconnect_ends_the_reading_without_an_error(file: Path) -> None:
    finished: list[str] = []

    async def app(scope: Any, receive: Any, send: Send) -> None:
        await send(START)
        await send(path_send(file))
        finished.append("background work")

    async with running(app) as interface:
        number = interface.open(window=PART)
        await until(lambda: len(interface.events(number)) == 2, what="the first part")
        interface.post((RESET, number, 1))
        await until(lambda: finished, what="the end of the reading")
        assert len(interface.events(number)) == 2


@pytest.mark.parametrize(
    ("name", "number"),
    [("missing", errno.ENOENT), (".", errno.EISDIR), ("pipe", errno.EINVAL), ("locked", errno.EACCES)],
)
async def test_an_unreadable_path_raises_in_the_app_and_is_a_500(tmp_path: Path, name: str, number: int) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "locked").touch(0)
    if name == "locked" and os.geteuid() == 0:
        pytest.skip("root may read everything")
    raised: list[OSError] = []

    async def app(scope: Any, receive: Any, send: Send) -> None:
        await send(START)
        try:
            await send(path_send(tmp_path / name))
        except OSError as error:
            raised.append(error)
            raise

    async with running(app) as interface:
        status, _ = status_and_body(await interface.answer(interface.open()))
        assert (status, [error.errno for error in raised]) == (500, [number])


async def test_an_app_continues_after_a_missing_file(tmp_path: Path) -> None:
    async def app(scope: Any, receive: Any, send: Send) -> None:
        await send(START)
        try:
            await send(path_send(tmp_path / "missing"))
        except FileNotFoundError:
            await send(BODY | {"body": b"instead"})

    async with running(app) as interface:
        assert status_and_body(await interface.answer(interface.open())) == (200, b"instead")


async def test_a_path_before_the_start_is_an_error(file: Path) -> None:
    raised: list[str] = []

    async def app(scope: Any, receive: Any, send: Send) -> None:
        try:
            await send(path_send(file))
        except RuntimeError as error:
            raised.append(str(error))
        await send(START)
        await send(BODY)
        await send(path_send(file))  # behind the end, where all is ignored

    async with running(app) as interface:
        assert status_and_body(await interface.answer(interface.open())) == (200, b"")
        assert "not allowed in the state 'waiting for the response to start'" in raised[0]


async def test_descriptors_with_offset_and_count(file: Path) -> None:
    with file.open("rb") as opened, file.open("rb", buffering=0) as raw:
        app = sending(
            START,
            BODY | {"body": b"<", "more_body": True},
            zero_copy_send(opened, offset=10, count=5, more_body=True),
            zero_copy_send(raw.fileno(), offset=200_000, count=100_000, more_body=True),
            zero_copy_send(raw, count=0, more_body=True),
            BODY | {"body": b">", "more_body": True},
            zero_copy_send(raw, offset=len(CONTENT) - 3),
        )
        async with running(app) as interface:
            answer = await interface.answer(interface.open(window=WINDOW))
            assert status_and_body(answer) == (200, b"<" + CONTENT[10:15] + CONTENT[200_000:] + b">" + CONTENT[-3:])
        assert (opened.tell(), raw.tell()) == (0, 0)


@pytest.mark.parametrize("kind", ["buffered", "raw", "descriptor"])
async def test_without_an_offset_the_position_of_the_file_counts(file: Path, kind: str) -> None:
    with file.open("rb", buffering=0 if kind != "buffered" else -1) as opened:
        opened.read(3)
        sent = opened.fileno() if kind == "descriptor" else opened
        app = sending(START, zero_copy_send(sent, count=100_000, more_body=True), zero_copy_send(sent))
        async with running(app) as interface:
            assert status_and_body(await interface.answer(interface.open(window=WINDOW))) == (200, CONTENT[3:])
        assert opened.read() == b""


async def test_unreadable_descriptors(file: Path) -> None:
    reading, writing = os.pipe()
    raised: list[str] = []

    async def app(scope: Any, receive: Any, send: Send) -> None:
        await send(START)
        for sent in (zero_copy_send(io.BytesIO(b"a")), zero_copy_send(reading, offset=0), zero_copy_send(10_000)):
            try:
                await send(sent)
            except OSError as error:
                raised.append(type(error).__name__)
        raise ArithmeticError

    async with running(app) as interface:
        status, _ = status_and_body(await interface.answer(interface.open()))
        assert (status, raised) == (500, ["UnsupportedOperation", "OSError", "OSError"])
    os.close(reading)
    os.close(writing)


async def test_trailers_after_a_file(file: Path) -> None:
    app = sending(
        START | {"trailers": True}, path_send(file), {"type": "http.response.trailers", "headers": [(b"a", b"1")]}
    )
    async with running(app) as interface:
        number = interface.open(window=WINDOW)
        await interface.last(number, events.TRAILERS_END)
        assert b"".join(event[1] for event in interface.events(number)[1:-1]) == CONTENT


async def test_a_cancelled_app_closes_its_file(file: Path) -> None:
    def open_files() -> list[str]:
        return [os.path.realpath(entry) for entry in Path("/proc/self/fd").iterdir()]

    async with running(sending(START, path_send(file)), graceful_timeout=0.1) as interface:
        number = interface.open(window=PART)
        await until(lambda: len(interface.events(number)) == 2, what="the first part")
        assert str(file) in open_files()
        interface.stop.set()
        await interface.ended
        assert str(file) not in open_files()


async def test_a_cancelled_app_closes_a_file_that_opens_late(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opening, go_on = threading.Event(), threading.Event()
    opened: list[io.FileIO] = []
    open_now = sendfile._open

    def open_late(path: str) -> io.FileIO:  # like a busy disk
        opening.set()
        go_on.wait(30)
        opened.append(open_now(path))
        return opened[0]

    monkeypatch.setattr(sendfile, "_open", open_late)
    async with running(sending(START, path_send(file)), graceful_timeout=0.1) as interface:
        interface.open()
        await until(opening.is_set, what="the opening")
        interface.stop.set()
        await interface.ended
    go_on.set()
    await until(lambda: bool(opened) and opened[0].closed, what="the file to be closed")


async def test_early_hints_precede_the_delayed_start() -> None:
    app = sending(START, {"type": "http.response.early_hint", "links": [b"</a>"]}, BODY | {"body": b"body"})
    async with running(app) as interface:
        answer = await interface.answer(interface.open())
        assert answer == [(events.EARLY_HINT, b"link: </a>\r\n"), (events.RESPONSE, 200, b"", b"body")]


async def test_body_middleware_gets_the_bytes_of_a_file(file: Path) -> None:
    """The response of Starlette sends a path where that is offered, and middleware is seldom made for paths."""

    async def app(scope: Any, receive: Any, send: Send) -> None:
        async def rewriting(message: Any) -> None:
            if message["type"] == "http.response.start":
                await send({**message, "headers": []})
            elif message["type"] == "http.response.body":
                await send({**message, "body": message["body"][::-1]})

        response = FileResponse(file)
        response.chunk_size = len(CONTENT) + 1
        await response(scope, receive, rewriting)

    async with running(app) as interface:
        answer = await interface.answer(interface.open(window=WINDOW))
    assert status_and_body(answer) == (200, CONTENT[::-1])
