"""Slow members of groups, and groups of stopping servers."""

import json
import uuid
from collections.abc import Callable

import pytest
import redis

from support.members import expect_done, send_order
from support.processes import Process
from support.raw import RawClient
from support.servers import LAYERS, Servers
from support.websocket import BINARY, CLOSE, TEXT, RawWebSocket, close_frame, wait_for_note

APP = "interface_server.groups_app:app"

Start = Callable[..., Process]


@pytest.fixture
def group() -> str:
    return f"group-{uuid.uuid4().hex}"


@pytest.fixture(params=LAYERS)
def serve(request: pytest.FixtureRequest, start_interface: Start, start_worker: Start) -> Callable[..., Servers]:
    """Start an interface server with these options, and a worker."""

    def serve(*options: object) -> Servers:
        if request.param == "memory":
            process = start_interface(*options, app=APP)
            return Servers([process], [process], "memory://")
        url = request.getfixturevalue("redis_url")
        worker = start_worker(APP, "--layer", url)
        return Servers([start_interface("--layer", url, *options)], [worker], url)

    return serve


@pytest.fixture
def rounds() -> Callable[..., None]:
    def rounds(fast: RawWebSocket, speaker: RawWebSocket, group: str, count: int) -> None:
        """Broadcast messages of 64 KiB as fast as `fast` reads them."""
        for _ in range(count):
            send_order(speaker, "big", group=group, times=1)
            opcode, payload = fast.read_frame()
            assert (opcode, len(payload)) == (BINARY, 65536)
            expect_done(speaker)

    return rounds


def test_a_slow_member_is_closed_and_delays_no_other(
    serve: Callable[..., Servers], rounds: Callable[..., None], group: str, name: str
) -> None:
    (server,) = serve().interfaces
    with (
        RawWebSocket(server, "/") as fast,
        RawWebSocket(server, "/") as speaker,
        RawWebSocket(server, f"/?name={name}", receive_buffer=16384) as slow,
    ):
        for client in (fast, slow):
            send_order(client, "add", group=group)
            expect_done(client)
        rounds(fast, speaker, group, 150)  # more than the kernel takes, and a mebibyte more
        wait_for_note(server, name, ["disconnect", 1013, "too slow"])
        messages = 0
        while (received := slow.read_frame())[0] == BINARY:
            messages += 1
        assert received == (CLOSE, (1013).to_bytes(2) + b"too slow")
        assert 0 < messages < 150
        slow.send(close_frame(1013))
        assert slow.read_until_close() == b""


def test_a_slow_stream_is_cut_and_delays_no_other(serve: Callable[..., Servers], group: str, name: str) -> None:
    (server,) = serve().interfaces
    with (
        RawClient(server) as fast,
        RawWebSocket(server, "/") as speaker,
        RawClient(server, receive_buffer=16384) as slow,
    ):
        for client in (fast, slow):
            client.send(f"GET /stream?group={group}&name={name} HTTP/1.1\r\nHost: test\r\n\r\n".encode())
            client.read_until(b"data: joined\n\n\r\n")
        for _ in range(150):
            event = {"type": "http.response.body", "body": "x" * 65536, "more_body": True}
            send_order(speaker, "send_event", group=group, event=event)
            assert len(fast.read_chunk()) == 65536
            expect_done(speaker)
        wait_for_note(server, name, "http.disconnect")
        assert not slow.read_until_close().endswith(b"0\r\n\r\n"), "the response looks complete"


def test_skip_drops_messages_of_a_slow_member(
    serve: Callable[..., Servers], rounds: Callable[..., None], group: str
) -> None:
    (server,) = serve("--slow-client", "skip").interfaces
    with (
        RawWebSocket(server, "/") as fast,
        RawWebSocket(server, "/") as speaker,
        RawWebSocket(server, "/", receive_buffer=16384) as slow,
    ):
        for client in (fast, slow):
            send_order(client, "add", group=group)
            expect_done(client)
        rounds(fast, speaker, group, 150)
        send_order(slow, "discard", group=group)
        messages = 0
        while slow.read_frame()[0] == BINARY:
            messages += 1
        assert 0 < messages < 150
        # Later broadcasts reach the slow member again.
        send_order(slow, "add", group=group)
        expect_done(slow)
        for number in range(3):
            send_order(speaker, "broadcast", group=group, text=f"hello {number}")
            assert slow.read_frame() == (TEXT, b"hello %d" % number)


def reply_channel_of(client: RawWebSocket) -> str:
    send_order(client, "identify")
    _, answer = client.read_frame()
    return str(json.loads(answer)["answer"][1])


def send_many(speaker: RawWebSocket, channel: str) -> None:
    """Send 150 messages of 64 KB to a channel: more than the kernel takes, and a mebibyte more."""
    for _ in range(150):
        send_order(speaker, "send_to", channel=channel, event={"type": "websocket.send", "text": "x" * 65536})
        expect_done(speaker)


def test_a_slow_client_of_direct_messages_is_closed(serve: Callable[..., Servers], name: str) -> None:
    (server,) = serve().interfaces
    with RawWebSocket(server, "/") as speaker, RawWebSocket(server, f"/?name={name}", receive_buffer=16384) as slow:
        send_many(speaker, reply_channel_of(slow))
        wait_for_note(server, name, ["disconnect", 1013, "too slow"])
        messages = 0
        while (received := slow.read_frame())[0] == TEXT:
            messages += 1
        assert received == (CLOSE, (1013).to_bytes(2) + b"too slow")
        assert 0 < messages < 150


def test_skip_drops_direct_messages_of_a_slow_client(serve: Callable[..., Servers]) -> None:
    (server,) = serve("--slow-client", "skip").interfaces
    with RawWebSocket(server, "/") as speaker, RawWebSocket(server, "/", receive_buffer=16384) as slow:
        channel = reply_channel_of(slow)
        send_many(speaker, channel)
        send_order(slow, "identify")
        messages = 0
        while len(slow.read_frame()[1]) == 65536:
            messages += 1
        assert 0 < messages < 150
        # Later broadcasts reach the slow member again.
        send_order(speaker, "send_to", channel=channel, event={"type": "websocket.send", "text": "hello"})
        assert slow.read_frame() == (TEXT, b"hello")


def test_a_stopping_interface_leaves_its_groups(
    start_interface: Start, start_worker: Start, redis_url: str, group: str, name: str
) -> None:
    start_worker(APP, "--layer", redis_url)
    server = start_interface("--layer", redis_url, "--graceful-timeout", 1)
    other = start_interface("--layer", redis_url)
    with (
        RawWebSocket(server, "/") as client,
        RawClient(server) as stream,
        redis.Redis.from_url(redis_url, protocol=2) as store,
    ):
        send_order(client, "add", group=group)
        expect_done(client)
        stream.send(f"GET /stream?group={group}.stream&name={name} HTTP/1.1\r\nHost: test\r\n\r\n".encode())
        stream.read_until(b"data: joined\n\n\r\n")
        assert len(store.keys("asgibus:group:*")) == 2
        server.terminate()
        assert client.read_close() == (1012, "")
        client.send(close_frame(1012))
        # The graceful timeout cuts the endless stream, and the app gets a disconnect.
        assert stream.read_until_close(timeout=10) == b""
        assert server.wait() == 0
        assert store.keys("asgibus:group:*") == []
        wait_for_note(other, name, "http.disconnect")


def test_a_group_outlives_a_stopping_worker(
    start_interface: Start, start_worker: Start, redis_url: str, group: str
) -> None:
    """Memberships belong to sockets, not to workers: a stream of a draining worker gets broadcasts.

    The response is no event stream, since a draining worker ends event streams.
    """
    first = start_worker(APP, "--layer", redis_url)
    server = start_interface("--layer", redis_url)
    with RawClient(server) as stream:
        stream.send(f"GET /stream?group={group}&type=text/plain HTTP/1.1\r\nHost: test\r\n\r\n".encode())
        stream.read_until(b"data: joined\n\n\r\n")
        start_worker(APP, "--layer", redis_url)
        first.terminate()
        first.wait_for("SIGTERM")
        with RawWebSocket(server, "/") as speaker:
            event = {"type": "http.response.body", "body": "data: heard\n\n", "more_body": True}
            send_order(speaker, "send_event", group=group, event=event)
            assert stream.read_chunk() == b"data: heard\n\n"
    assert first.wait() == 0
