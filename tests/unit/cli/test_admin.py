"""The admin port over real sockets."""

import gc
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

from asgibus.cli import admin as admin_module
from asgibus.cli.admin import MAX_HEAD_SIZE, MAX_SOCKETS, AdminError, admin
from asgibus.layers.contract import Statistics
from support.deadline import HANG, in_time, wait_until
from support.raw import RawClient, Response

Address = tuple[str, int]


class State:
    """Stand-in for the state that a server reports."""

    def __init__(self) -> None:
        self.reason: str | None = None
        self.counted = {"takeover": 2, "slow client": 7}

    def ready(self) -> str | None:
        return self.reason

    def counts(self) -> dict[str, int]:
        return self.counted

    def gauges(self) -> dict[str, int]:
        return {"connections": 3, "waiting offers": 0}

    async def channels(self) -> dict[str, Statistics]:
        thumbnails = Statistics(messages_count=9, messages_pending=4, messages_max_age=1.5, channel_full_count=2)
        return {"thumbnails": thumbnails}


@pytest.fixture
def state() -> State:
    return State()


@pytest.fixture(params=["asyncio", "uvloop"])
def portal(request: pytest.FixtureRequest) -> Iterator[BlockingPortal]:
    with start_blocking_portal(backend_options={"use_uvloop": request.param == "uvloop"}) as portal:
        yield portal


@pytest.fixture
def address(portal: BlockingPortal, state: State) -> Iterator[Address]:
    with portal.wrap_async_context_manager(admin("127.0.0.1", 0, state)) as url:
        assert url.startswith("http://127.0.0.1:")
        yield ("127.0.0.1", int(url.rpartition(":")[2]))


PATIENCE = 1.0
"""Seconds for a slow client, in place of the 5 of the product."""


@pytest.fixture
def connect(address: Address) -> Iterator[Callable[[], RawClient]]:
    with ExitStack() as clients:
        yield lambda: clients.enter_context(RawClient(address, timeout=HANG))


def ask(address: Address, target: str, method: str = "GET") -> Response:
    """Send one request, assert that the server closes, and return the answer."""
    with RawClient(address) as client:
        response = client.request(method, target)
        assert client.read_until_close() == b""
    assert response.get("Connection") == "close"
    assert response.get("Cache-Control") == "no-store"
    return response


def scrape(address: Address) -> dict[tuple[str, str], float]:
    """Return a map of (name of the sample, kind or channel) to value, as Prometheus parses them."""
    response = ask(address, "/metrics")
    assert response.status == 200
    assert response.get("Content-Type") == "text/plain; version=0.0.4; charset=utf-8"
    return {
        (sample.name, sample.labels.get("kind") or sample.labels.get("channel", "")): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }


def test_healthz_answers(address: Address) -> None:
    response = ask(address, "/healthz")
    assert (response.status, response.text) == (200, "ok\n")


def test_readyz_answers_with_the_reason(address: Address, state: State) -> None:
    response = ask(address, "/readyz")
    assert (response.status, response.text) == (200, "ready\n")
    state.reason = "Redis at redis://127.0.0.1:6379 cannot be reached"
    response = ask(address, "/readyz?verbose=1")
    assert (response.status, response.text) == (503, "Redis at redis://127.0.0.1:6379 cannot be reached\n")
    assert ask(address, "/healthz").status == 200


def test_a_scrape_has_the_current_counts(address: Address, state: State) -> None:
    first = scrape(address)
    assert first["asgibus_events_total", "takeover"] == 2
    assert first["asgibus_events_total", "slow client"] == 7
    assert first["asgibus_connections", ""] == 3
    kinds = {"messages_total": 9, "full_total": 2, "pending": 4, "oldest_seconds": 1.5}
    assert {kind: first[f"asgibus_channel_{kind}", "thumbnails"] for kind in kinds} == kinds
    assert first["asgibus_waiting_offers", ""] == 0
    state.counted["takeover"] += 1
    state.counted['a "quoted"\nkind'] = 1
    second = scrape(address)
    assert second["asgibus_events_total", "takeover"] == 3
    assert second["asgibus_events_total", 'a "quoted"\nkind'] == 1
    assert first["asgibus_events_total", "slow client"] == second["asgibus_events_total", "slow client"]


@pytest.mark.skipif(not os.path.exists("/proc/stat"), reason="no /proc")  # noqa: PTH110
def test_a_scrape_has_the_figures_of_the_process(address: Address) -> None:
    figures = scrape(address)
    assert figures["process_resident_memory_bytes", ""] > 1_000_000
    assert figures["process_open_fds", ""] > 3
    assert figures["process_cpu_seconds_total", ""] > 0


def test_without_prometheus_client_the_probes_are_answered(
    portal: BlockingPortal, state: State, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with portal.wrap_async_context_manager(admin("127.0.0.1", 0, state)) as url:
        address = ("127.0.0.1", int(url.rpartition(":")[2]))
        assert ask(address, "/readyz").status == 200
        response = ask(address, "/metrics")
    assert response.status == 501
    assert response.text == "/metrics needs prometheus-client: pip install 'asgibus[metrics]'\n"
    assert response.text.strip() in caplog.text


def test_the_global_registry_stays_empty(address: Address) -> None:
    scrape(address)
    assert not [family.name for family in REGISTRY.collect() if family.name.startswith("asgibus")]


@pytest.mark.parametrize("target", ["/healthz", "/readyz", "/metrics"])
def test_head_is_get_without_the_body(address: Address, target: str) -> None:
    head, get = ask(address, target, "HEAD"), ask(address, target)
    assert head.status == get.status == 200
    assert head.get("Content-Type") == get.get("Content-Type")
    assert int(head.get("Content-Length") or 0) > 0


@pytest.mark.parametrize("target", ["/", "/healthz/", "/Healthz", "http://elsewhere/"])
def test_other_paths_are_404(address: Address, target: str) -> None:
    response = ask(address, target)
    assert (response.status, response.text) == (404, "There are /healthz, /readyz and /metrics.\n")


@pytest.mark.parametrize("method", ["POST", "DELETE", "OPTIONS"])
def test_other_methods_are_405(address: Address, method: str) -> None:
    response = ask(address, "/readyz", method)
    assert response.status == 405
    assert response.get("Allow") == "GET, HEAD"


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET /healthz HTTP/1.0\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nbytes",
        b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\nGET /metrics HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n\x00\x01 no request",
        b"GET /healthz HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n" + b"x" * 100_000,
    ],
    ids=["HTTP/1.0", "upgrade", "pipelined", "garbage behind", "body"],
)
def test_one_request_per_connection_is_answered(connect: Callable[[], RawClient], request_bytes: bytes) -> None:
    client = connect()
    client.send(request_bytes)
    assert client.read_response().text == "ok\n"
    assert client.read_until_close() == b""


def test_a_request_in_small_pieces(connect: Callable[[], RawClient]) -> None:
    client = connect()
    client.send_pieces(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
    assert client.read_response().text == "ok\n"


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # a client that wants TLS
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nno colon\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"\n" * 3 + b"nonsense",
        bytes(range(256)) * 64,
    ],
    ids=["TLS", "HTTP/2", "header", "lengths", "nonsense", "bytes"],
)
def test_garbage_is_refused(address: Address, connect: Callable[[], RawClient], garbage: bytes) -> None:
    client = connect()
    client.send(garbage)
    assert client.read_response().status in (400, 501), "as on the public port"
    assert client.read_until_close() == b""
    assert ask(address, "/healthz").status == 200


@pytest.mark.parametrize(
    "start",
    [b"GET /healthz HTTP/1.1\r\nX-Long: ", b"GET /", b"\r\n"],
    ids=["header", "target", "empty lines"],
)
def test_an_oversized_head_is_rejected(connect: Callable[[], RawClient], start: bytes) -> None:
    client = connect()
    client.send(start + (b"\r\n" if start == b"\r\n" else b"xx") * MAX_HEAD_SIZE)
    assert client.read_response().status == 431
    assert client.read_until_close() == b""


def test_a_head_of_the_maximum_size_is_read(connect: Callable[[], RawClient]) -> None:
    head = b"GET /healthz HTTP/1.1\r\nHost: a\r\nX-Long: %s\r\n\r\n"
    client = connect()
    client.send(head % (b"x" * (MAX_HEAD_SIZE - len(head) + 2)))
    assert client.read_response().status == 200


def test_slow_clients_are_given_up(
    address: Address, connect: Callable[[], RawClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admin_module, "SECONDS", PATIENCE)
    began = time.monotonic()
    silent, halfway, lingering = connect(), connect(), connect()
    halfway.send(b"GET /healthz HTTP/1.1\r\nHo")
    lingering.send(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
    assert ask(address, "/healthz").status == 200, "others are not kept waiting"
    for client in (silent, halfway):
        assert client.read_response().status == 408
        assert client.read_until_close() == b""
    assert time.monotonic() - began > PATIENCE - 0.1
    in_time(time.monotonic() - began, PATIENCE + 2)
    assert lingering.read_response().status == 200

    def reset() -> bool:
        """Return whether the server has closed its end of a socket that the client keeps open after the answer."""
        try:
            lingering.send(b"x")
        except (BrokenPipeError, ConnectionResetError):
            return True
        return False

    wait_until(reset, PATIENCE + 1, "the end of a socket that was not closed by its client")


@pytest.mark.parametrize("data", [b"", b"GET /healthz ", b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n"])
def test_silent_sockets_make_room(address: Address, connect: Callable[[], RawClient], data: bytes) -> None:
    """The oldest idle socket is closed, whether silent, in the middle of a head, or answered and kept open."""
    clients = [connect() for _ in range(MAX_SOCKETS)]
    for client in clients:
        client.send(data)
    for _ in range(2 * MAX_SOCKETS):
        assert ask(address, "/healthz").status == 200
    with suppress(ConnectionResetError):
        clients[0].read_until_close(2)


def test_sockets_with_running_requests_are_kept(address: Address, state: State) -> None:
    release, running = threading.Event(), threading.Semaphore(0)

    async def channels() -> dict[str, Statistics]:
        running.release()
        await anyio.to_thread.run_sync(release.wait, 5)
        return {}

    state.channels = channels  # type: ignore[method-assign]
    with ExitStack() as stack:
        clients = [stack.enter_context(RawClient(address)) for _ in range(MAX_SOCKETS)]
        for client in clients:
            client.send(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n")
            assert running.acquire(timeout=5)
        with RawClient(address) as client, suppress(ConnectionResetError):
            assert client.read_until_close(2) == b""
        release.set()
        assert [client.read_response().status for client in clients] == [200] * MAX_SOCKETS


HEAD = b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n"
FLOODS = {
    "requests": HEAD * 2000,
    "a body": HEAD + b"x" * 65536,
    "bytes": b"\0" * 65536,
    "empty lines": b"\r\n" * 32768,
    "headers": b"GET / HTTP/1.1\r\n" + b"a:\r\n" * 13000,
}


@pytest.fixture
def no_collection() -> Iterator[None]:
    """Collect no garbage: a pass over the objects of all earlier tests takes longer than the server may."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collection")
@pytest.mark.parametrize("flood", FLOODS)
def test_a_flood_is_cut_off_and_does_not_hold_the_loop(address: Address, portal: BlockingPortal, flood: str) -> None:
    longest = 0.0

    async def beat() -> None:
        nonlocal longest
        while True:  # once in each turn of the loop; by the time of its thread, as the machine may have more to do
            began = time.thread_time()
            await anyio.lowlevel.checkpoint()
            longest = max(longest, time.thread_time() - began)

    beating = portal.start_task_soon(beat)
    sent = 0
    with socket.create_connection(address, timeout=10) as client, suppress(BrokenPipeError, ConnectionResetError):
        client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
        while sent < 256 * 1024 * 1024:
            sent += client.send(FLOODS[flood])
    beating.cancel()
    assert sent < 64 * 1024 * 1024, "the server read more than the buffers of the kernel hold"
    assert longest < 0.05, "seconds of one turn of the event loop"


def test_early_disconnects_are_no_errors(address: Address, connect: Callable[[], RawClient]) -> None:
    for sent in (b"", b"GET /he", b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n"):
        client = connect()
        client.send(sent)
        client.reset()
        client = connect()
        client.send(sent)
        client.close()
    assert ask(address, "/healthz").status == 200


def test_a_disconnect_during_the_response_is_no_error(address: Address, state: State) -> None:
    running, disconnected = threading.Event(), threading.Event()

    async def channels() -> dict[str, Statistics]:
        running.set()
        await anyio.to_thread.run_sync(disconnected.wait, 5)
        for _ in range(10):  # turns of the event loop, which reads the reset in the next one
            await anyio.lowlevel.checkpoint()
        return {}

    state.channels = channels  # type: ignore[method-assign]
    with RawClient(address) as client:
        client.send(b"GET /metrics HTTP/1.1\r\nHost: test\r\n\r\n")
        assert running.wait(5)
        client.reset()
        disconnected.set()
    assert ask(address, "/metrics").status == 200


def test_a_fault_in_counting_is_logged_and_no_more(
    address: Address, state: State, caplog: pytest.LogCaptureFixture
) -> None:
    state.counted = {"takeover": "many"}  # type: ignore[dict-item]
    assert ask(address, "/metrics").status == 500
    assert "no response to /metrics" in caplog.text
    assert ask(address, "/healthz").status == 200


def test_the_context_ends_all_tasks(portal: BlockingPortal, state: State) -> None:
    async def open_sockets_to_the_end() -> list[socket.socket]:
        async with admin("127.0.0.1", 0, state) as url:
            address = ("127.0.0.1", int(url.rpartition(":")[2]))
            before = anyio.get_running_tasks()
            clients = [socket.create_connection(address) for _ in range(3)]
            clients[0].sendall(b"GET /healthz HTTP/1.1\r\n")
            # Sockets are accepted in turn, so all of them are by now.
            assert (await anyio.to_thread.run_sync(ask, address, "/healthz")).status == 200
        assert len(anyio.get_running_tasks()) <= len(before)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address)
        return clients

    for client in portal.call(open_sockets_to_the_end):
        with client:
            client.settimeout(2)
            with suppress(ConnectionResetError):  # closed all the same
                assert client.recv(100) == b""


def test_an_error_in_the_context_ends_all_tasks(portal: BlockingPortal, state: State) -> None:
    async def fail() -> None:
        async with admin("127.0.0.1", 0, state):
            raise LookupError

    with pytest.raises(ExceptionGroup) as raised:
        portal.call(fail)
    assert raised.group_contains(LookupError)


def test_ipv6(portal: BlockingPortal, state: State) -> None:
    if not socket.has_ipv6:
        pytest.skip("no IPv6")
    with portal.wrap_async_context_manager(admin("::1", 0, state)) as url:
        assert url.startswith("http://[::1]:")


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("host", "port", "reason"),
    [
        ("127.0.0.1", None, "Address already in use"),
        ("203.0.113.1", 0, "Cannot assign requested address"),
        ("no.such.host.invalid", 0, ""),
    ],
)
async def test_an_unavailable_address(state: State, host: str, port: int | None, reason: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1] if port is None else port
        with pytest.raises(AdminError) as raised:
            async with admin(host, port, state):
                pass
    assert str(raised.value).startswith(f"cannot listen on {host}:{port} for the admin port: ")
    assert reason in str(raised.value)
