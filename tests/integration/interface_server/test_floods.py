"""Floods by one client: other clients are answered, and the memory of the server stays bounded.

How long the event loop was held is measured in CPU time of the server, which a busy machine does not stretch much.
"""

import ssl
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from typing import Any, Self

import psutil
import pytest

from support.certificates import Authority
from support.processes import Process, Processes
from support.raw import RawClient
from support.servers import serving
from support.websocket import (
    BINARY,
    CONT,
    PING,
    PONG,
    TEXT,
    RawWebSocket,
    close_frame,
    frame,
    handshake,
)

APP = "interface_server.flood_app:app"
MIB = 1 << 20
WINDOW = 256 * 1024
ALLOWANCE = 8 * MIB
"""Bytes beyond the windows: memory that the interpreter keeps, the other sockets, the embedded worker."""
LONGEST = 0.1
"""Seconds of CPU time for which the loop may be held; the server aims at less than half of that."""
TRIPS = 20
"""Round trips of the watching socket during a flood."""
DEFLATE = "Sec-WebSocket-Extensions: permessage-deflate"

GET = b"GET / HTTP/1.1\r\nHost: test\r\n\r\n"
STREAM = b"GET /stream HTTP/1.1\r\nHost: test\r\n\r\n"
CHUNKED = b"POST /count HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n"
HEAD_OF_TINY_HEADERS = b"GET / HTTP/1.1\r\nHost: test\r\n" + b"a:\r\n" * 10_850 + b"\r\n"


def deflated(payload: bytes, opcode: int = TEXT) -> bytes:
    """Return a compressed message."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, -12)
    return frame(opcode, (compressor.compress(payload) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4], rsv=4)


def filled(piece: bytes, size: int) -> bytes:
    """Repeat a piece until the result has about `size` bytes."""
    return piece * (size // len(piece))


HTTP_FLOODS = {
    "tiny requests ahead": filled(GET, MIB),
    "tiny requests behind a stream": STREAM + filled(GET, 2 * MIB),
    "heads of tiny headers behind a stream": STREAM + HEAD_OF_TINY_HEADERS * 20,
    "empty bodies in chunks": filled(CHUNKED + b"0\r\n\r\n", MIB),
    "chunks of one byte": CHUNKED + filled(b"1\r\na\r\n", 2 * MIB) + b"0\r\n\r\n",
    "chunks with extensions": CHUNKED + filled(b"1;a=b;c\r\na\r\n", 3 * MIB) + b"0\r\n\r\n",
    "an endless chunk extension": CHUNKED + b"1;" + b"a" * 6 * MIB,
    "an endless head": b"GET / HTTP/1.1\r\nHost: test\r\n" + b"a:\r\n" * MIB,
    "an endless header": b"GET / HTTP/1.1\r\nHost: " + b"a" * 6 * MIB,
    "empty lines": b"\r\n" * 3 * MIB,
    "bytes behind the last request": GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n") + filled(GET, 12 * MIB),
    "an upload": b"POST /count HTTP/1.1\r\nHost: test\r\nContent-Length: %d\r\n\r\n" % (32 * MIB) + bytes(32 * MIB),
}
WEBSOCKET_FLOODS = {
    "pings": filled(frame(PING), 2 * MIB),
    "pongs": filled(frame(PONG), 2 * MIB),
    "empty texts": filled(frame(TEXT), MIB),
    "empty fragments": frame(TEXT, b"a", fin=False) + filled(frame(CONT, fin=False), 2 * MIB),
    "fragments of one byte": frame(BINARY, b"a", fin=False) + filled(frame(CONT, b"a", fin=False), 2 * MIB),
    "texts behind the close": close_frame(1000) + filled(frame(TEXT), 2 * MIB),
    "closes": filled(close_frame(1000), 2 * MIB),
    "garbage": b"\xff" * 12 * MIB,
}


OVER_TLS = {"tiny requests ahead", "an endless header", "an upload", "pings", "empty fragments", "garbage"}
"""Floods that are sent over TLS too. `--long` sends all of them."""


def floods(kinds: Iterable[str]) -> list[Any]:
    """Return each kind of flood, plain and over TLS, for `parametrize(("tls", "kind"), ...)`.

    With `scope="module"` the tests share a server; pytest infers the scope "function" where not all names are indirect.
    """
    marks = {kind: [] if kind in OVER_TLS else [pytest.mark.long] for kind in kinds}
    return [*(("plain", kind) for kind in marks), *(pytest.param("tls", kind, marks=marks[kind]) for kind in marks)]


@pytest.fixture(scope="module", params=["plain", "tls"])
def tls(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Authority | None:
    return None if request.param == "plain" else Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest, tls: Authority | None) -> Iterator[Process]:
    options = ("--ssl-certfile", tls.issue("server.pem")) if tls else ()
    with serving(request, APP, "--websocket-compression", *options, layer="memory") as servers:
        yield servers.interfaces[0]


@pytest.fixture
def context(tls: Authority | None) -> ssl.SSLContext | None:
    return tls.client() if tls else None


class Flood:
    """A flood of a server, watched by a second socket; `check` asserts the bounds of memory and time."""

    def __init__(self, server: Process, context: ssl.SSLContext | None) -> None:
        self._server = server
        self._context = context
        self._process = psutil.Process(server.pid)
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._control("/shut")
        self._watch = self._stack.enter_context(RawWebSocket(self._server, "/echo", tls=self._context))
        self._control("/longest")
        self._before = self._peak = self._process.memory_info().rss
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()
        self._control("/open")

    def run(self, *clients: RawClient, wire: bytes) -> None:
        """Send the data from each client, until all is sent or the server reads no more."""
        senders = [threading.Thread(target=_send, args=(client, wire)) for client in clients]
        for client, sender in zip(clients, senders, strict=True):
            self._stack.enter_context(client)
            sender.start()
        for sender in senders:
            while sender.is_alive():
                self._round_trip()
                sender.join(0.01)  # watch, and leave most of the processor to the flood
        for _ in range(TRIPS):
            self._round_trip()

    def check(self, sockets: int = 1) -> None:
        longest = float(self._control("/longest"))
        assert longest < LONGEST, f"the loop was held for {longest:.3f} s of CPU time"
        growth = self._peak - self._before
        assert growth < sockets * 2 * WINDOW + ALLOWANCE, f"grown by {growth / MIB:.1f} MiB"
        self._round_trip()

    def _round_trip(self) -> None:
        self._watch.send(frame(TEXT, b"still there?"))
        assert self._watch.read_frame() == (TEXT, b"still there?")
        self._peak = max(self._peak, self._process.memory_info().rss)

    def open_gate(self) -> None:
        """Release the apps that wait."""
        self._control("/open")
        self.run(wire=b"")

    def _control(self, path: str) -> bytes:
        with RawClient(self._server, tls=self._context) as client:
            return client.request("GET", path).body


def _send(client: RawClient, wire: bytes) -> None:
    client.socket.settimeout(0.3)
    view, sent = memoryview(wire), 0
    try:
        while sent < len(wire):
            sent += client.socket.send(view[sent : sent + (1 << 16)])
    except OSError:
        pass  # the server reads no more, or has closed


@pytest.mark.parametrize(("tls", "kind"), floods(HTTP_FLOODS), indirect=["tls"], scope="module")
def test_http(server: Process, context: ssl.SSLContext | None, kind: str) -> None:
    with Flood(server, context) as flood:
        flood.run(RawClient(server, tls=context), wire=HTTP_FLOODS[kind])
        flood.check()


@pytest.mark.parametrize("path", ["/listen", "/deaf"])
@pytest.mark.parametrize(("tls", "kind"), floods(WEBSOCKET_FLOODS), indirect=["tls"], scope="module")
def test_websocket(server: Process, context: ssl.SSLContext | None, kind: str, path: str) -> None:
    with Flood(server, context) as flood:
        flood.run(RawWebSocket(server, path, tls=context), wire=WEBSOCKET_FLOODS[kind])
        flood.check()


@pytest.mark.parametrize(("tls", "kind"), floods(WEBSOCKET_FLOODS), indirect=["tls"], scope="module")
def test_websocket_before_the_accept(server: Process, context: ssl.SSLContext | None, kind: str) -> None:
    with Flood(server, context) as flood:
        client = RawWebSocket(server, "/late", tls=context, answered=False)
        flood.run(client, wire=WEBSOCKET_FLOODS[kind])
        flood.open_gate()
        flood.check()


def test_tiny_messages_take_no_more_than_twice_the_window(processes: Processes) -> None:
    """The memory of each tiny message counts, not only its bytes."""
    server = processes.start_interface(app=APP)
    with Flood(server, None) as flood:
        clients = [RawWebSocket(server, "/deaf") for _ in range(10)]
        flood.run(*clients, wire=filled(frame(TEXT), 40_000))
        flood.check(sockets=10)


def test_many_sockets(server: Process, context: ssl.SSLContext | None) -> None:
    with Flood(server, context) as flood:
        clients = [RawWebSocket(server, "/listen", tls=context) for _ in range(40)]
        flood.run(*clients, wire=filled(frame(PING), 250_000))
        flood.check(sockets=40)


@pytest.mark.parametrize("path", ["/listen", "/deaf", "/late"])
@pytest.mark.parametrize(
    ("payload", "size"),
    [(b"a" * (MIB - 10), 250_000), (b"a" * 4000, MIB), (b"", MIB)],
    ids=["messages of a megabyte", "messages of a page", "empty messages"],
)
def test_compressed_messages(
    server: Process, context: ssl.SSLContext | None, path: str, payload: bytes, size: int
) -> None:
    with Flood(server, context) as flood:
        client = RawWebSocket(server, path, DEFLATE, tls=context, answered=path != "/late")
        flood.run(client, wire=filled(deflated(payload), size))
        if path == "/late":
            flood.open_gate()
        flood.check()


def test_tls_records_of_one_byte(server: Process, tls: Authority | None, context: ssl.SSLContext | None) -> None:
    if tls is None or context is None:
        pytest.skip("the server has no TLS")
    with Flood(server, context) as flood:
        client = RawClient(server)
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        secured = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
        while True:
            try:
                secured.do_handshake()
                break
            except ssl.SSLWantReadError:
                client.send(outgoing.read())
                incoming.write(client.read_some())
        for byte in handshake("/listen") + filled(frame(PONG), 200_000):
            secured.write(bytes([byte]))
        flood.run(client, wire=outgoing.read())
        flood.check()


def test_connections(server: Process, context: ssl.SSLContext | None) -> None:
    with Flood(server, context) as flood, ExitStack() as stack:
        for _ in range(500):
            stack.enter_context(RawClient(server))
        flood.run(wire=b"")
        flood.check(sockets=500)


@pytest.mark.parametrize(
    "header",
    [b"\r\n\r\n\x00\r\nQUIT\n\x21\x11\xff\xff" + bytes(65_535), b"PROXY " + b"x" * 6 * MIB],
    ids=["the longest header", "an endless header"],
)
def test_proxy_headers(start_interface: Callable[..., Process], header: bytes) -> None:
    server = start_interface("--proxy-protocol", app=APP)
    process = psutil.Process(server.pid)
    with ExitStack() as stack:
        watch = stack.enter_context(RawWebSocket(server, "/echo", before=b"PROXY UNKNOWN\r\n"))
        before = process.memory_info().rss
        for _ in range(20):
            _send(stack.enter_context(RawClient(server)), header)
            watch.send(frame(TEXT, b"still there?"))
            assert watch.read_frame() == (TEXT, b"still there?")
        assert process.memory_info().rss - before < 20 * 2 * WINDOW + ALLOWANCE
        client = stack.enter_context(RawClient(server))
        client.send(b"PROXY UNKNOWN\r\n")
        assert float(client.request("GET", "/longest").body) < LONGEST


def test_a_server_on_redis_keeps_its_lease(
    start_interface: Callable[..., Process], start_worker: Callable[..., Process], redis_url: str
) -> None:
    start_worker(APP, "--layer", redis_url)
    server = start_interface("--layer", redis_url)
    with ExitStack() as stack:
        watching = [stack.enter_context(RawWebSocket(server, "/echo")) for _ in range(20)]
        flooding = [stack.enter_context(RawWebSocket(server, "/listen")) for _ in range(40)]
        wire = filled(frame(PING), 250_000)
        senders = [threading.Thread(target=_send, args=(client, wire)) for client in flooding]
        for sender in senders:
            sender.start()
        while any(sender.is_alive() for sender in senders):
            for client in watching:
                client.send(frame(TEXT, b"still there?"))
            assert [client.read_frame() for client in watching] == [(TEXT, b"still there?")] * 20
    assert "lease" not in server.log()
