"""Time limits, stops, and a bus without workers."""

import select
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
from websockets.exceptions import InvalidStatus

from support.certificates import Authority
from support.deadline import in_time, wait_until
from support.processes import END_TIMEOUT, Process
from support.raw import RawClient
from support.websocket import (
    BINARY,
    PING,
    PONG,
    TEXT,
    RawWebSocket,
    close_frame,
    frame,
    handshake,
    read_notes,
    wait_for_note,
    ws,
)

APP = "interface_server.websocket_app:app"

Start = Callable[..., Process]


def test_a_client_stays_while_it_answers_pings(start_interface: Start, name: str) -> None:
    server = start_interface("--ping-interval", 0.3, "--ping-timeout", 0.9, app=APP)
    with RawWebSocket(server, f"/listen?name={name}") as client:
        for _ in range(3):
            opcode, payload = client.read_frame()
            assert opcode == PING
            client.send(frame(PONG, payload))
        client.send(close_frame(1000))
    wait_for_note(server, name, ["disconnect", 1000, ""])


def test_a_sending_client_need_not_answer_pings(start_interface: Start, name: str) -> None:
    interval, timeout = 0.3, 1.0
    server = start_interface("--ping-interval", interval, "--ping-timeout", timeout, app=APP)
    with RawWebSocket(server, f"/echo?name={name}") as client:
        opened, pings = time.monotonic(), 0
        while pings * interval < timeout + interval:
            client.send(frame(TEXT, b"hello"))
            opcode, _ = client.read_frame()
            pings += opcode == PING
            time.sleep(0.02)  # a client that sends now and then: this test needs the pace
        assert time.monotonic() - opened > timeout


def test_an_unanswered_ping_is_a_disconnect(start_interface: Start, name: str) -> None:
    server = start_interface("--ping-interval", 0.3, "--ping-timeout", 0.6, app=APP)
    with RawWebSocket(server, f"/listen?name={name}") as client:
        opened = time.monotonic()
        assert client.read_frame() == (PING, b"")
        assert client.read_until_close() == b""
        assert time.monotonic() - opened >= 0.75
        in_time(time.monotonic() - opened, 3)
    wait_for_note(server, name, ["disconnect", 1006, "no answer to a ping"])


def test_a_reading_client_is_not_silent(start_interface: Start, name: str) -> None:
    """A client with megabytes left to read counts as alive, since a ping waits behind them."""
    server = start_interface("--ping-interval", 0.2, "--ping-timeout", 0.4, app=APP)
    with RawWebSocket(server, f"/flood?count=200&name={name}", receive_buffer=16384) as client:
        time.sleep(1.2)  # twice the time after which a silent client is dropped
        messages = 0
        while messages < 200:
            opcode, payload = client.read_frame()
            messages += opcode == BINARY
            if opcode == PING:
                client.send(frame(PONG, payload))
        client.send(close_frame(1000))
        wait_for_note(server, name, "over")
    assert read_notes(server, name)[0] == 200


def test_the_websocket_timeout_closes(start_interface: Start, name: str) -> None:
    server = start_interface("--websocket-timeout", 1, app=APP)
    with RawWebSocket(server, f"/listen?name={name}") as client:
        assert client.read_close() == (1001, "open for too long")
        client.send(close_frame(1001))
        assert client.read_until_close() == b""
    wait_for_note(server, name, ["disconnect", 1001, "open for too long"])


def test_the_message_size_limit_is_an_option(start_interface: Start) -> None:
    server = start_interface("--websocket-max-message-size", 10, app=APP)
    with RawWebSocket(server, "/echo") as client:
        client.send(frame(TEXT, b"0123456789"))
        assert client.read_frame() == (TEXT, b"0123456789")
        client.send(frame(TEXT, b"0123456789a"))
        assert client.read_close()[0] == 1009


def test_a_denial_is_cut_off_by_a_stop(start_interface: Start, name: str) -> None:
    server = start_interface("--graceful-timeout", 1, app=APP)
    with RawWebSocket(server, f"/deny-at-length?parts=1&gate={name}&name={name}") as client:
        assert client.status == 403
        wait_for_note(server, name, 0)
        server.terminate()
        rest = client.read_until_close()
    assert b"HTTP/1.1" not in rest, "another response in the middle of the first"
    assert not rest.endswith(b"0\r\n\r\n"), "the body looks complete"


def test_no_worker_is_503_on_the_handshake_after_the_connect_timeout(
    start_interface: Start, start_worker: Start, redis_url: str, name: str
) -> None:
    server = start_interface("--layer", redis_url, "--connect-timeout", 1)
    started = time.monotonic()
    with pytest.raises(InvalidStatus) as rejected:
        ws(server, "/listen", query={"name": name})
    assert rejected.value.response.status_code == 503
    assert time.monotonic() - started >= 0.7
    in_time(time.monotonic() - started, 2.5)

    # A worker that starts later does not get the connection.
    start_worker(APP, "--layer", redis_url)
    with ws(server, "/echo") as client:
        client.send("a")
        assert client.recv(timeout=30) == "a"
    assert read_notes(server, name) == []


def test_a_stop_of_the_interface_spreads_its_closes(
    start_interface: Start, start_worker: Start, redis_url: str
) -> None:
    """A server that stops spreads its closes, so that clients reconnect one by one, and serves the rest meanwhile."""
    start_worker(APP, "--layer", redis_url)
    server = start_interface("--layer", redis_url, "--drain-period", 1)
    with ExitStack() as stack:
        clients = [stack.enter_context(RawWebSocket(server, "/echo")) for _ in range(300)]
        server.terminate()
        closed, _, _ = select.select([client.socket for client in clients], [], [], 10)
        assert 0 < len(closed) < 100
        others = [client for client in clients if client.socket not in closed]
        for client in others:
            client.send(frame(TEXT, b"hello"))
        answers = [client.read_frame() for client in others]
        assert answers.count((TEXT, b"hello")) > 100  # the rest were closed meanwhile
        for client in clients:
            client.send(close_frame(1012))
    wait_until(lambda: not server.running)


def test_a_stop_of_the_interface_is_1012_at_both_ends(
    start_interface: Start, start_worker: Start, redis_url: str, name: str
) -> None:
    start_worker(APP, "--layer", redis_url)
    server = start_interface("--layer", redis_url, "--graceful-timeout", 30)
    other = start_interface("--layer", redis_url)
    with (
        RawWebSocket(server, f"/listen?name={name}") as client,
        RawWebSocket(server, "/listen") as second,
        RawClient(server) as waiting,
    ):
        waiting.send(handshake("/hesitate"))
        server.terminate()
        assert client.read_close() == (1012, "")
        client.send(close_frame(1012))
        assert client.read_until_close() == b""
        assert waiting.read_response().status == 503
        wait_for_note(other, name, ["disconnect", 1012, ""])
        assert server.running  # `second` has not answered the close frame yet, and may within the graceful timeout
        second.read_close()
        second.send(close_frame(1012))
        assert server.wait() == 0


def test_a_stop_of_the_worker_is_1012_at_both_ends(
    start_interface: Start, start_worker: Start, redis_url: str, name: str
) -> None:
    worker = start_worker(APP, "--layer", redis_url)
    server = start_interface("--layer", redis_url)
    with (
        RawWebSocket(server, f"/listen?name={name}") as client,
        RawClient(server) as waiting,
    ):
        waiting.send(handshake(f"/hesitate?name={name}"))
        wait_for_note(server, name, "connected")
        worker.terminate()
        assert client.read_close() == (1012, "")
        client.send(close_frame(1012))
        assert client.read_until_close() == b""
        assert waiting.read_response().status == 503
    assert worker.wait() == 0


def test_an_embedded_server_stops_when_its_clients_have_left(start_interface: Start, name: str) -> None:
    server = start_interface("--graceful-timeout", 2 * END_TIMEOUT, app=APP)
    with RawWebSocket(server, f"/listen?name={name}") as client:
        server.interrupt()
        assert client.read_close() == (1012, "")
        client.send(close_frame(1012))
        assert server.wait() == 0


def test_a_rejected_message_over_tls_closes_with_its_reason(start_interface: Start, tmp_path: Path) -> None:
    """The close reason arrives over TLS too, where a connection has no half-close."""
    authority = Authority(tmp_path)
    server = start_interface("--ssl-certfile", authority.issue("server.pem"), app=APP)
    context = authority.client()
    with RawWebSocket(server, "/show-scope", tls=context) as client:
        assert b'"scheme": "wss"' in client.read_frame()[1]
    with RawWebSocket(server, "/echo", tls=context) as client:
        client.send(frame(TEXT, b"secret"))
        assert client.read_frame() == (TEXT, b"secret")
        client.send(frame(TEXT, b"\xff"))
        assert client.read_close()[0] == 1007
        assert client.read_until_close() == b""
