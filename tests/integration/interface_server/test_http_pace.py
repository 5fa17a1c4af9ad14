"""Slow clients of a server in the process of the test, with shortened timeouts."""

import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
from anyio.to_thread import run_sync

from asgibus.cli.embedded import embedded_worker, serve_with_worker
from asgibus.interface_server import lingering_close, slow_client
from asgibus.interface_server import server as server_module
from asgibus.interface_server.http import protocol as http
from asgibus.interface_server.server import Server
from asgibus.interface_server.settings import InterfaceSettings
from asgibus.interface_server.websocket import protocol as websocket
from asgibus.layers import open_layer
from asgibus.worker.settings import WorkerSettings
from support.raw import RawClient
from support.websocket import CLOSE, RawWebSocket, read_notes, wait_for_note

pytestmark = pytest.mark.anyio

PATIENCE = 0.3  # seconds until a slow client is dropped
LONG_PATIENCE = 1.0  # for clients that must not be dropped, though the machine is busy
SEND_BUFFER = 64 * 1024  # bytes


@pytest.fixture(autouse=True)
def patience(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the timeouts for slow clients to these seconds."""
    seconds: float = getattr(request, "param", PATIENCE)
    monkeypatch.setattr(sys, "path", [*sys.path])  # the worker adds the app's folder
    monkeypatch.setattr(slow_client, "BODY_GRACE_SECONDS", seconds)
    monkeypatch.setattr(slow_client, "STALL_SECONDS", seconds)
    for limit in ("CHECK_SECONDS", "SILENCE_SECONDS", "LINGER_SECONDS", "REST_LINGER_SECONDS"):
        monkeypatch.setattr(lingering_close, limit, seconds)
    monkeypatch.setattr(http, "CHECK_SECONDS", PATIENCE / 4)
    monkeypatch.setattr(websocket, "CLOSE_SECONDS", PATIENCE / 4)
    monkeypatch.setattr(server_module, "TICK_SECONDS", PATIENCE / 10)


class Address:
    def __init__(self, port: int) -> None:
        self.url, self.uds, self.port = f"http://127.0.0.1:{port}", "", port


@asynccontextmanager
async def serving_here(min_body_rate: int = 1000, app: str = "http_app:app") -> AsyncIterator[Address]:
    layer = open_layer("memory://")
    # Bound the bytes that the kernel buffers for a client that reads nothing; the default may be large.
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        fd = listener.detach()
    server = Server(InterfaceSettings(fd=fd, min_body_rate=min_body_rate, graceful_timeout=0.1), layer)
    listening = anyio.Event()
    urls: list[str] = []

    def ready(url: str) -> None:
        urls.append(url)
        listening.set()

    stop = anyio.Event()
    try:
        async with anyio.create_task_group() as tasks:
            worker = embedded_worker(WorkerSettings(app=app, app_dir=str(Path(__file__).parent)), layer)
            tasks.start_soon(serve_with_worker, worker, lambda: server.serve(stop, ready), stop, 0.1)
            await listening.wait()
            yield Address(int(urls[0].rpartition(":")[2]))
            stop.set()
    finally:
        await layer.close()


def post(target: str, *headers: str) -> bytes:
    lines = [f"POST {target} HTTP/1.1", "Host: test", "Content-Length: 1000000", *headers]
    return "\r\n".join([*lines, "", ""]).encode()


def drip(client: RawClient, size: int, seconds: float) -> None:
    """Send `size` bytes ten times a second, for `seconds` or until a response arrives."""
    client.socket.settimeout(0.1)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        client.socket.sendall(bytes(size))
        try:
            client.socket.recv(1, socket.MSG_PEEK)
        except TimeoutError:
            continue
        return


async def test_a_slow_body_is_answered_408(name: str) -> None:
    def test(server: Address) -> None:
        with RawClient(server) as client:
            client.send(post(f"/torn-body?name={name}"))
            drip(client, 10, 5)
            response = client.read_response()
            assert (response.status, response.get("connection")) == (408, "close")
            assert client.read_until_close() == b""
        wait_for_note(server, name, "disconnect")

    async with serving_here() as server:
        await run_sync(test, server)


@pytest.mark.parametrize("patience", [LONG_PATIENCE], indirect=True)
async def test_a_steady_body_is_read(name: str) -> None:
    def test(server: Address) -> None:
        with RawClient(server) as client:
            client.send(post(f"/torn-body?name={name}"))
            drip(client, 1000, 2 * LONG_PATIENCE)
            client.send(bytes(900_000))
            client.half_close()
        wait_for_note(server, name, "disconnect")
        assert read_notes(server, name) == ["reading", "disconnect", "over"]

    async with serving_here() as server:
        await run_sync(test, server)


async def test_a_rate_of_zero_is_no_limit(name: str) -> None:
    def test(server: Address) -> None:
        with RawClient(server) as client:
            client.send(post(f"/torn-body?name={name}"))
            client.assert_silent(3 * PATIENCE)

    async with serving_here(min_body_rate=0) as server:
        await run_sync(test, server)


async def test_waiting_for_100_continue_is_not_slow(name: str) -> None:
    def test(server: Address) -> None:
        with RawClient(server) as client, RawClient(server) as opener:
            client.send(post(f"/slow-ask?name={name}&gate={name}", "Expect: 100-continue"))
            client.assert_silent(3 * PATIENCE)
            assert opener.request("GET", f"/open-gate?gate={name}").status == 200
            assert client.read_response().status == 100
            assert client.read_response().status == 408  # from now on the client is slow

    async with serving_here() as server:
        await run_sync(test, server)


async def test_a_slow_app_is_not_a_slow_client(name: str) -> None:
    def test(server: Address) -> None:
        body = bytes(1_000_000)
        with RawClient(server) as client, RawClient(server) as opener:
            client.send(post(f"/slow-ask?name={name}&gate={name}"))
            client.socket.setblocking(False)
            sent = client.socket.send(body)
            wait_for_note(server, name, "waiting")
            time.sleep(3 * PATIENCE)  # a timeout of the server would end within this
            assert opener.request("GET", f"/open-gate?gate={name}").status == 200
            client.send(body[sent:])
            assert client.read_response().body == body

    async with serving_here() as server:
        await run_sync(test, server)


def wait_dropped(client: RawClient) -> None:
    """Wait until the connection is reset, without reading earlier data."""
    deadline = time.monotonic() + 5
    while True:
        try:
            client.socket.sendall(b"x")
        except (BrokenPipeError, ConnectionResetError):
            return
        assert time.monotonic() < deadline, "the client was not dropped"
        time.sleep(0.05)  # between two looks, until the deadline above


@pytest.mark.parametrize("target", ["/large?size=100000000&part=100000", "/large?size=12000000"])
async def test_a_client_without_reads_is_dropped(name: str, target: str) -> None:
    """The client is dropped both while the app waits to send more and after the app has sent the whole response."""

    def test(server: Address) -> None:
        with RawClient(server, receive_buffer=4096) as client:
            client.send(f"GET {target}&name={name} HTTP/1.1\r\nHost: test\r\n\r\n".encode())
            client.read_head()
            wait_for_note(server, name, "over")
            wait_dropped(client)

    async with serving_here() as server:
        await run_sync(test, server)


@pytest.mark.parametrize("patience", [LONG_PATIENCE], indirect=True)
async def test_a_slow_reader_is_kept(name: str) -> None:
    def test(server: Address) -> None:
        size = 8_000_000
        with RawClient(server, receive_buffer=65536) as client:
            client.send(f"GET /large?size={size}&name={name} HTTP/1.1\r\nHost: test\r\n\r\n".encode())
            client.read_head()
            received, end = 0, time.monotonic() + 2 * LONG_PATIENCE
            while time.monotonic() < end:
                received += len(client.read_exactly(100_000))
                time.sleep(0.1)  # a slow reader: this test needs the pace
            assert client.read_exactly(size - received) == bytes(size - received)

    async with serving_here() as server:
        await run_sync(test, server)


@pytest.mark.parametrize("patience", [LONG_PATIENCE], indirect=True)
async def test_a_slow_reader_of_an_early_response_is_kept(name: str) -> None:
    def test(server: Address) -> None:
        size = 6_000_000
        with RawClient(server, receive_buffer=65536) as client:
            client.send(post(f"/unread?size={size}"))
            client.read_head()
            received, end = 0, time.monotonic() + 2 * LONG_PATIENCE
            while time.monotonic() < end:
                received += len(client.read_exactly(100_000))
                time.sleep(0.1)  # a slow reader: this test needs the pace
            assert client.read_exactly(size - received) == bytes(size - received)
            assert client.read_until_close() == b""

    async with serving_here() as server:
        await run_sync(test, server)


@pytest.mark.parametrize("patience", [LONG_PATIENCE], indirect=True)
async def test_a_body_rest_is_discarded_as_long_as_data_arrives() -> None:
    def test(server: Address) -> None:
        with RawClient(server) as client:
            client.send(post("/unread"))
            end = time.monotonic() + 2.5 * LONG_PATIENCE
            while time.monotonic() < end:
                client.send(bytes(1000))
                time.sleep(LONG_PATIENCE / 10)  # a slow uplink: this test needs the pace
            assert client.read_response().status == 413
            client.send(bytes(1000))
            client.assert_silent(PATIENCE / 4)

    async with serving_here() as server:
        await run_sync(test, server)


@pytest.mark.parametrize("length", [1_000_000, 100])
async def test_a_missing_body_rest_closes_the_connection(monkeypatch: pytest.MonkeyPatch, length: int) -> None:
    def test(server: Address) -> None:
        with RawClient(server) as client:
            client.send(post("/unread").replace(b"1000000", b"%d" % length))
            assert client.read_response().status == 413
            client.send(b"x")
            assert client.read_until_close() == b""

    monkeypatch.setattr(http, "REST_SECONDS", PATIENCE)
    async with serving_here() as server:
        await run_sync(test, server)


async def test_an_endless_body_rest_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    def test(server: Address) -> None:
        with RawClient(server) as client, RawClient(server) as other:
            client.send(post("/unread").replace(b"1000000", b"1000000000000"))
            assert client.read_response().status == 413
            end = time.monotonic() + 5
            with pytest.raises((BrokenPipeError, ConnectionResetError)):
                while time.monotonic() < end:
                    client.send(bytes(1_000_000))
                    assert other.request("GET", "/").status == 200

    monkeypatch.setattr(lingering_close, "DISCARD_SECONDS", 2 * PATIENCE)
    async with serving_here() as server:
        await run_sync(test, server)


# The response that refuses a WebSocket.


@pytest.mark.parametrize("parts", [1000, 30])
async def test_an_unread_denial_response_is_dropped(name: str, parts: int) -> None:
    """The client is dropped both while the app waits to send more and after the app has sent the whole response."""

    def test(server: Address) -> None:
        target = f"/deny-at-length?parts={parts}&name={name}"
        with RawWebSocket(server, target, receive_buffer=4096) as client:
            assert client.status == 403
            wait_for_note(server, name, "over")
            wait_dropped(client)

    async with serving_here(app="websocket_app:app") as server:
        await run_sync(test, server)


@pytest.mark.parametrize("patience", [LONG_PATIENCE], indirect=True)
async def test_a_slow_reader_of_a_denial_response_is_kept(name: str) -> None:
    def test(server: Address) -> None:
        with RawWebSocket(server, f"/deny-at-length?parts=40&name={name}", receive_buffer=65536) as client:
            for _ in range(40):
                client.read_exactly(100_000)
                time.sleep(0.05)  # a slow reader: this test needs the pace
            assert client.read_until_close().endswith(b"0\r\n\r\n")

    async with serving_here(app="websocket_app:app") as server:
        await run_sync(test, server)


async def test_an_unanswered_close_frame_drops_the_client(name: str) -> None:
    def test(server: Address) -> None:
        with RawWebSocket(server, f"/close?code=4000&reason=&name={name}") as client:
            assert client.read_frame()[0] == CLOSE
            assert client.read_until_close() == b""

    async with serving_here(app="websocket_app:app") as server:
        await run_sync(test, server)
