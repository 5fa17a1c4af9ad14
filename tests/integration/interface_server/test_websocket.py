"""WebSockets over real sockets, on both layers: frames of the client and events of the app."""

import json

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.utils import accept_key

from support.processes import Process
from support.raw import RawClient
from support.websocket import (
    BINARY,
    CLOSE,
    CONT,
    KEY,
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


# Messages.


@pytest.mark.parametrize(
    "message",
    [
        "",
        "a",
        "grüße 🐦",
        "a\x00b",
        b"",
        b"\x00\xff",
        bytes(125),
        bytes(126),
        bytes(65535),
        bytes(65536),
        bytes(1 << 20),
        "é" * (1 << 19),
    ],
    ids=lambda message: f"{type(message).__name__}-{len(message)}",
)
def test_messages_are_echoed_unchanged(server: Process, message: str | bytes) -> None:
    with ws(server, "/echo", max_size=None) as client:
        client.send(message)
        assert client.recv(timeout=30) == message


def test_fragments_are_one_message_with_control_frames_between_them(server: Process) -> None:
    text = "grüße".encode()
    with RawWebSocket(server, "/echo") as client:
        client.send(frame(TEXT, text[:3], fin=False))  # in the middle of a character
        client.send(frame(PING, b"between"))
        client.send(frame(CONT, b"", fin=False) + frame(CONT, text[3:]))
        assert client.read_frame() == (PONG, b"between")
        assert client.read_frame() == (TEXT, text)
        client.send(frame(BINARY, b"\xff", fin=False) + frame(CONT, b"\xfe"))
        assert client.read_frame() == (BINARY, b"\xff\xfe")


def test_frames_byte_by_byte(server: Process) -> None:
    with RawWebSocket(server, "/echo") as client:
        client.send_pieces(frame(TEXT, b"slow") + frame(BINARY, bytes(130)), pause=0.0005)
        assert client.read_frame() == (TEXT, b"slow")
        assert client.read_frame() == (BINARY, bytes(130))


def test_many_frames_in_one_segment_keep_their_order(server: Process) -> None:
    with RawWebSocket(server, "/echo") as client:
        client.send(b"".join(frame(TEXT, b"%d" % number) for number in range(1000)))
        assert [client.read_frame() for _ in range(1000)] == [(TEXT, b"%d" % number) for number in range(1000)]


def test_pings_are_answered_with_their_payload(server: Process) -> None:
    with RawWebSocket(server, "/listen") as client:
        for payload in (b"", b"a", bytes(125)):
            client.send(frame(PING, payload))
            assert client.read_frame() == (PONG, payload)
        client.send(frame(PONG, b"unasked"))
        client.assert_silent()


def test_frames_right_behind_the_handshake_are_read(server: Process) -> None:
    early = frame(TEXT, b"one") + frame(TEXT, b"two")
    with RawWebSocket(server, "/echo", early=early) as client:
        assert client.status == 101
        assert [client.read_frame() for _ in range(2)] == [(TEXT, b"one"), (TEXT, b"two")]


def test_messages_before_the_accept_keep_their_order(server: Process, name: str) -> None:
    with RawWebSocket(server, f"/echo?gate={name}", early=frame(TEXT, b"0"), answered=False) as client:
        for number in range(1, 100):
            client.send(frame(TEXT, b"%d" % number))
        client.assert_silent()
        with RawClient(server) as other:
            other.request("GET", f"/open?name={name}")
        for number in range(100, 200):
            client.send(frame(TEXT, b"%d" % number))
        assert client.read_answer() == 101
        assert [client.read_frame() for _ in range(200)] == [(TEXT, b"%d" % number) for number in range(200)]


def test_the_buffer_before_the_accept_is_bounded(server: Process, name: str) -> None:
    wire = frame(BINARY, bytes(60_000)) * 500  # 30 MB, more than the kernel takes
    with RawWebSocket(server, f"/deaf?gate=first&name={name}", answered=False) as client:
        sent = client.send_until_blocked(wire)
        assert sent < len(wire) // 2
        with RawClient(server) as other:
            other.request("GET", f"/open?name={name}")
        client.send(wire[sent:] + close_frame(1000))
        assert client.read_answer() == 101
        wait_for_note(server, name, ["total", 500 * 60_000])


# The handshake.


def test_accept_carries_subprotocol_and_headers(server: Process, name: str) -> None:
    with RawWebSocket(
        server, f"/subprotocol?choose=chat.v2&name={name}", "Sec-WebSocket-Protocol: x, chat.v2"
    ) as client:
        headers: dict[str, list[str]] = {}
        for key, value in client.headers:
            headers.setdefault(key.lower(), []).append(value)
        assert client.status == 101
        assert headers["sec-websocket-accept"] == [accept_key(KEY)]
        assert headers["sec-websocket-protocol"] == ["chat.v2"]
        assert headers["x-one"] == ["1"]
        assert headers["set-cookie"] == ["a=1", "b=2"]
        assert headers["upgrade"] == ["websocket"]
        assert headers["server"] == ["asgibus"]
        assert len(headers["date"]) == 1
    assert read_notes(server, name)[0] == ["x", "chat.v2"]


def test_handshake_headers_of_the_app_are_ignored(server: Process) -> None:
    with RawWebSocket(server, "/headers") as client:
        names = [name for name, _ in client.headers]
        assert sorted(names) == ["connection", "date", "sec-websocket-accept", "server", "upgrade", "x-one"]
        assert dict(client.headers)["sec-websocket-accept"] == accept_key(KEY)
        client.send(frame(TEXT, b"hello"))
        assert client.read_exactly(7)[2:] == b"hello"


@pytest.mark.parametrize("offered", [["x", "Chat"], None])
def test_a_subprotocol_without_offer_is_an_app_error(server: Process, name: str, offered: list[str] | None) -> None:
    """An app error is raised, since a client would have to fail the connection: RFC 6455, section 4.1."""
    with ws(server, "/subprotocol", query={"name": name, "choose": "chat"}, subprotocols=offered) as client:
        assert client.subprotocol is None
    error = "the client did not offer the subprotocol 'chat', see scope['subprotocols']"
    assert read_notes(server, name)[:2] == [offered or [], error]


def test_no_subprotocol_without_a_choice_of_the_app(server: Process, name: str) -> None:
    with ws(server, "/subprotocol", query={"name": name}, subprotocols=["a"]) as client:
        assert client.subprotocol is None
    assert read_notes(server, name)[0] == ["a"]


def test_the_scope(server: Process) -> None:
    with RawWebSocket(server, "/show%2Dscope?a=%20b", "X-Two: 1", "x-two: 2") as client:
        scope = json.loads(client.read_frame()[1])
        headers = scope.pop("headers")
        assert headers[0] == ["host", "test"]
        assert headers[-2:] == [["x-two", "1"], ["x-two", "2"]]
        assert scope == {
            "type": "websocket",
            "asgi": {"version": "3.0", "spec_version": "2.5"},
            "http_version": "1.1",
            "scheme": "ws",
            "path": "/show-scope",
            "raw_path": "/show%2Dscope",
            "query_string": "a=%20b",
            "root_path": "",
            "client": list(client.socket.getsockname()),
            "server": ["127.0.0.1", server.port],
            "subprotocols": [],
            "state": None,
            "extensions": ["asgibus", "websocket.http.response"],
        }


def test_a_close_before_accept_is_403(server: Process, name: str) -> None:
    with pytest.raises(InvalidStatus) as rejected:
        ws(server, "/refuse", query={"name": name})
    assert rejected.value.response.status_code == 403
    wait_for_note(server, name, ["disconnect", 1006, ""])
    wait_for_note(server, name, "over")


def test_a_denial_response_reaches_the_client_whole(server: Process, name: str) -> None:
    with RawClient(server) as client:
        client.send(handshake(f"/deny?name={name}"))
        response = client.read_response()
        assert (response.status, response.text) == (401, "log in first")
        assert response.get("www-authenticate") == "Basic"
        assert client.read_until_close() == b""
    wait_for_note(server, name, ["disconnect", 1006, ""])


@pytest.mark.parametrize("path", ["/raise-early", "/return-early"])
def test_a_return_or_error_before_the_accept_is_a_500(server: Process, path: str) -> None:
    with RawClient(server) as client:
        client.send(handshake(path))
        assert client.read_response().status == 500
        assert client.read_until_close() == b""


@pytest.mark.parametrize("header", ["Content-Length: 0", "Content-Length: 00", "Expect: 100-continue"])
def test_a_handshake_with_body_headers_and_no_body(server: Process, header: str) -> None:
    with RawWebSocket(server, "/echo", header, early=frame(TEXT, b"early")) as client:
        assert client.status == 101
        assert client.read_exactly(7)[2:] == b"early"
    assert "is not allowed in the state" not in server.log()


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"Version: 13": "Version: 8"}, 426),
        ({"Version: 13": "Version: x"}, 426),
        ({"Sec-WebSocket-Key: ": "Sec-WebSocket-Key: !"}, 400),
        ({"Sec-WebSocket-Key": "X-Key"}, 400),
        ({"Sec-WebSocket-Key: ": "Sec-WebSocket-Key: AAAA\r\nSec-WebSocket-Key: "}, 400),
    ],
)
def test_an_invalid_handshake_is_rejected(server: Process, change: dict[str, str], status: int) -> None:
    head = handshake("/echo").decode()
    for old, new in change.items():
        assert old in head
        head = head.replace(old, new)
    with RawClient(server) as client:
        client.send(head.encode())
        response = client.read_response()
        assert response.status == status
        assert response.get("sec-websocket-version") == ("13" if status == 426 else None)
        assert client.read_until_close() == b""


def test_an_unfinished_denial_is_cut_off(server: Process) -> None:
    with RawClient(server) as client:
        client.send(handshake("/deny-and-return"))
        assert client.read_head()[1] == 401
        assert client.read_chunk() == b"log in "
        assert client.read_until_close() == b""


@pytest.mark.parametrize("path", ["/begin-denial-and-return", "/begin-denial-and-raise"])
def test_a_denial_without_a_body_event_becomes_a_500(server: Process, path: str) -> None:
    with RawClient(server) as client:
        client.send(handshake(path))
        assert client.read_response().status == 500
        assert client.read_until_close() == b""
    server.wait_for(f'"WebSocket {path}" 500')


def test_an_abandoned_handshake_is_in_the_access_log(server: Process, name: str) -> None:
    with RawClient(server) as client:
        client.send(handshake(f"/hesitate?name={name}"))
        wait_for_note(server, name, "connected")
    server.wait_for(rf'"WebSocket /hesitate\?name={name}" -')


def test_handshake_variants_of_browsers_and_proxies(server: Process) -> None:
    head = handshake("/echo", "Origin: http://test", "Sec-WebSocket-Extensions: permessage-deflate").decode()
    head = head.replace("Connection: Upgrade", "Connection: keep-alive, upgrade").replace("websocket", "WebSocket")
    with RawWebSocket(server, "/echo", answered=False) as client:
        assert client.read_answer() == 101
    with RawClient(server) as raw:
        raw.send(head.encode())
        _, status, _, headers = raw.read_head()
        assert status == 101
        assert "sec-websocket-extensions" not in {name.lower() for name, _ in headers}
    with ws(server, "/echo", compression="deflate") as compressing:
        compressing.send("a" * 1000)
        assert compressing.recv(timeout=30) == "a" * 1000


def test_a_handshake_after_other_requests(server: Process, name: str) -> None:
    before = f"GET /seen?name={name} HTTP/1.1\r\nHost: test\r\n\r\n".encode()
    with RawWebSocket(server, "/echo", early=frame(TEXT, b"early"), before=before * 2, answered=False) as client:
        assert [client.read_response().text for _ in range(2)] == ["[]", "[]"]
        assert client.read_answer() == 101
        assert client.read_frame() == (TEXT, b"early")


# Closing.


@pytest.mark.parametrize(("code", "reason"), [(1000, ""), (1001, "going"), (3000, "a"), (4999, "é" * 61 + "x")])
def test_a_close_of_the_client_reaches_the_app(server: Process, name: str, code: int, reason: str) -> None:
    with RawWebSocket(server, f"/listen?name={name}") as client:
        client.send(close_frame(code, reason))
        assert client.read_close() == (code, reason)
        assert client.read_until_close() == b""
    wait_for_note(server, name, ["disconnect", code, reason])


def test_a_close_without_a_code_is_1005(server: Process, name: str) -> None:
    with RawWebSocket(server, f"/listen?name={name}") as client:
        client.send(frame(CLOSE))
        assert client.read_frame() == (CLOSE, b"")
        assert client.read_until_close() == b""
    wait_for_note(server, name, ["disconnect", 1005, ""])


@pytest.mark.parametrize("leave", ["close", "reset", "half_close"])
def test_a_lost_client_is_1006(server: Process, name: str, leave: str) -> None:
    with RawWebSocket(server, f"/listen?name={name}") as client:
        client.send(frame(TEXT, b"hello") + frame(TEXT, b"unfinished")[:5])
        wait_for_note(server, name, ["text", "hello"])
        getattr(client, leave)()
        wait_for_note(server, name, ["disconnect", 1006, ""])


def test_all_messages_before_the_close_are_received(server: Process, name: str) -> None:
    with RawWebSocket(server, f"/listen?name={name}") as client:
        client.send(b"".join(frame(TEXT, b"%d" % number) for number in range(500)) + close_frame(1000))
        wait_for_note(server, name, "over")
    assert read_notes(server, name) == [
        *(["text", str(number)] for number in range(500)),
        ["disconnect", 1000, ""],
        "over",
    ]


@pytest.mark.parametrize(("code", "reason"), [(1000, ""), (1011, ""), (1014, ""), (4000, "bye ü")])
def test_a_close_of_the_app_reaches_the_client_and_ends_receive(
    server: Process, name: str, code: int, reason: str
) -> None:
    with ws(server, "/close", query={"code": code, "reason": reason, "name": name}) as client:
        with pytest.raises(ConnectionClosed) as closed:
            client.recv(timeout=30)
        assert closed.value.rcvd is not None
        assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (code, reason)
    wait_for_note(server, name, ["disconnect", code, reason])
    wait_for_note(server, name, "MESSAGE_SENT is not allowed in the state 'complete'")


def test_a_close_of_the_app_wakes_a_waiting_receive(server: Process, name: str) -> None:
    with ws(server, "/close-beside-receive", query={"name": name}) as client, pytest.raises(ConnectionClosed):
        client.recv(timeout=30)
    wait_for_note(server, name, ["disconnect", 4002, ""])


def test_the_close_frame_of_the_client_is_awaited(server: Process) -> None:
    with RawWebSocket(server, "/close?code=4000") as client:
        assert client.read_close() == (4000, "")
        client.assert_silent()
        client.send(frame(TEXT, b"ignored") + close_frame(4000))
        assert client.read_until_close() == b""


@pytest.mark.parametrize(("path", "code"), [("/raise-late", 1011), ("/return-late", 1000)])
def test_a_return_or_error_of_the_app_closes(server: Process, path: str, code: int) -> None:
    with RawWebSocket(server, path) as client:
        assert client.read_close() == (code, "")


# Invalid input of clients.


@pytest.mark.parametrize(
    ("wire", "code"),
    [
        (frame(TEXT, b"a", masked=False), 1002),
        (frame(TEXT, b"a", rsv=4), 1002),
        (frame(TEXT, b"a", rsv=1), 1002),
        (frame(0x3, b"a"), 1002),
        (frame(0xB, b"a"), 1002),
        (frame(CONT, b"a"), 1002),
        (frame(TEXT, b"a", fin=False) + frame(TEXT, b"b"), 1002),
        (frame(PING, b"a", fin=False), 1002),
        (frame(PING, bytes(126)), 1002),
        (frame(CLOSE, b"\x03"), 1002),
        (close_frame(1005), 1002),
        (close_frame(999), 1002),
        (frame(CLOSE, b"\x03\xe8\xff"), 1007),
        (frame(TEXT, b"\xff"), 1007),
        (frame(TEXT, b"\xed\xa0\x80"), 1007),
        (frame(TEXT, "ü".encode()[:1]), 1007),
        (frame(TEXT, b"ok", fin=False) + frame(CONT, b"\xc3"), 1007),
        (frame(BINARY, bytes((16 << 20) + 1)), 1009),
        (frame(BINARY, bytes(8 << 20), fin=False) + frame(CONT, bytes((8 << 20) + 1)), 1009),
    ],
    ids=lambda value: repr(value[:12]) if isinstance(value, bytes) else str(value),
)
def test_a_protocol_error_closes_with_its_reason(server: Process, name: str, wire: bytes, code: int) -> None:
    with RawWebSocket(server, f"/listen?name={name}") as client:
        client.send(frame(TEXT, b"before") + wire)
        assert client.read_close()[0] == code
        client.send(frame(TEXT, b"after"))
        assert client.read_until_close() == b""
    wait_for_note(server, name, "over")
    before, (kind, reported, _), _ = read_notes(server, name)
    assert (before, kind, reported) == (["text", "before"], "disconnect", code)


def test_messages_of_16_mib_pass_both_ways(server: Process) -> None:
    message = bytes(16 << 20)
    with RawWebSocket(server, "/echo") as client:
        client.send(frame(BINARY, message))
        assert client.read_frame() == (BINARY, message)


def test_the_close_reason_arrives_within_an_oversized_message(server: Process) -> None:
    """Closing at once would reset the connection under a client that still sends, and lose the close frame."""
    with ws(server, "/listen") as client:
        with pytest.raises(ConnectionClosed) as closed:
            client.send(bytes(20 << 20))
            client.recv(timeout=30)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1009


# Invalid events of apps.


def test_invalid_events_raise_in_send(server: Process, name: str) -> None:
    with ws(server, "/invalid", query={"name": name}) as client:
        assert client.recv(timeout=30) == "alive"
    wait_for_note(server, name, "over")
    *errors, _ = read_notes(server, name)
    assert errors == [
        *["ValueError"] * 4,
        "TypeError",
        "TypeError",
        "UnicodeEncodeError",
        "MessageTooLarge",
        "ValueError",
        "TypeError",
        "ValueError",
        "IllegalTransition",
    ]


def test_send_after_the_client_is_gone_is_an_oserror(server: Process, name: str) -> None:
    with RawWebSocket(server, f"/send-after?name={name}") as client:
        client.send(close_frame(1001))
        client.read_close()
        client.read_until_close()
    with RawClient(server) as other:
        other.request("GET", f"/open?name={name}")
    wait_for_note(server, name, "over")
    error, disconnect = ["OSError", "ClientDisconnected"], ["disconnect", 1001, ""]
    assert read_notes(server, name) == [error, disconnect, error, disconnect, "over"]


def test_cancelled_receives_lose_no_message(server: Process, name: str) -> None:
    with ws(server, "/impatient", query={"name": name}) as client:
        assert client.recv(timeout=30) == "patient at last"
        client.send(b"still heard")
    wait_for_note(server, name, ["total", 11])
