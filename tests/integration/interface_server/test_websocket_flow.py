"""Flow control of WebSockets: an end that reads slowly slows the other end, and the servers buffer little."""

import threading
from collections.abc import Iterator

import psutil
import pytest

from support.deadline import HANG, wait_until
from support.processes import Process
from support.raw import RawClient
from support.servers import Servers
from support.websocket import (
    BINARY,
    CONT,
    PING,
    PONG,
    TEXT,
    RawWebSocket,
    close_frame,
    frame,
    read_notes,
    wait_for_note,
)

APP = "interface_server.websocket_app:app"

MIB = 1 << 20
MESSAGE = 65_536
KERNEL = 14 * MIB  # more than the buffers of both sockets, the windows and the bytes under way together


@pytest.fixture
def lean(servers: Servers) -> Iterator[None]:
    """Fail the test if a process grows during the test by more than a connection may use."""
    before = [psutil.Process(process.pid).memory_info().rss for process in servers.all]
    yield
    after = [psutil.Process(process.pid).memory_info().rss for process in servers.all]
    growth = [(new - old) / MIB for old, new in zip(before, after, strict=True)]
    assert max(growth) < 16, f"grown by MiB: {growth}"


@pytest.mark.usefixtures("lean")
def test_send_waits_until_the_client_reads(server: Process, name: str) -> None:
    count = 500
    with RawWebSocket(server, f"/flood?count={count}&name={name}", receive_buffer=16384) as client:
        sent = settled(server, name)
        assert sent * MESSAGE < KERNEL
        for number in range(count):
            opcode, payload = client.read_frame()
            assert (opcode, len(payload), int.from_bytes(payload[:8])) == (BINARY, MESSAGE, number)
        client.send(close_frame(1000))
        wait_for_note(server, name, count)


@pytest.mark.usefixtures("lean")
def test_the_socket_is_not_read_until_the_app_receives(server: Process, name: str) -> None:
    wire = frame(BINARY, bytes(MESSAGE)) * 500
    with RawWebSocket(server, f"/deaf?name={name}") as client:
        sent = client.send_until_blocked(wire)
        assert sent < KERNEL
        with RawClient(server) as other:
            other.request("GET", f"/open?name={name}")
        client.send(wire[sent:] + close_frame(1000))
        wait_for_note(server, name, ["total", 500 * MESSAGE])


@pytest.mark.usefixtures("lean")
def test_a_sender_without_reads_is_paused(server: Process) -> None:
    """Messages of a client do not acknowledge messages of the app that the client has not read."""
    wire = frame(BINARY, bytes(MESSAGE)) * 1000
    with RawWebSocket(server, "/echo", receive_buffer=16384) as client:
        assert client.send_until_blocked(wire) < 2 * KERNEL


@pytest.mark.usefixtures("lean")
def test_unread_pongs_pause_the_socket(server: Process) -> None:
    pings = b"".join(frame(PING, b"%0125d" % number) for number in range(200_000))  # 25 MB
    with RawWebSocket(server, "/listen", receive_buffer=16384) as client:
        sent = client.send_until_blocked(pings)
        assert sent < KERNEL
        rest = pings[sent : sent + -sent % len(frame(PING, bytes(125)))]
        sending = threading.Thread(target=client.socket.sendall, args=(rest + frame(PING, b"last"),))
        client.socket.settimeout(HANG)
        sending.start()
        answers = 1
        while client.read_frame() != (PONG, b"last"):
            answers += 1
        sending.join()
        assert answers < sent / 131


def test_fragments_cost_no_extra_memory(server: Process, name: str) -> None:
    """Fragments of a message need no more memory than their bytes, however many they are."""
    process = psutil.Process(server.pid)
    with RawWebSocket(server, f"/listen?name={name}") as client:
        client.send(frame(TEXT, b"a", fin=False))
        before = process.memory_info().rss
        client.send(frame(CONT, b"ab", fin=False) * 150_000)  # few enough for a slow machine between two pings
        client.send(frame(PING))
        assert client.read_frame() == (PONG, b"")
        assert process.memory_info().rss - before < 4 * MIB
        client.send(frame(CONT, b"z"))
        wait_for_note(server, name, ["text", "a" + "ab" * 150_000 + "z"])


def test_a_disconnect_ends_a_waiting_send(server: Process, name: str) -> None:
    with RawWebSocket(server, f"/let-raise?name={name}", receive_buffer=16384):
        pass
    wait_for_note(server, name, "over")


def settled(server: Process, name: str) -> int:
    """Return the first note, once the app has not changed the note for a while."""
    last = [-1, 0]

    def same() -> bool:
        (now,) = read_notes(server, name)
        last[1] = last[1] + 1 if now == last[0] else 0
        last[0] = now
        return last[1] >= 20 and now > 0

    wait_until(same, what="a standstill of the app")
    return last[0]
