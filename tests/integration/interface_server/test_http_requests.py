"""Requests over real sockets, on both layers: the order of reading, and disconnects."""

import json

import pytest

from support.processes import Process
from support.raw import RawClient, Response
from support.servers import Servers
from support.websocket import read_notes, wait_for_note

APP = "interface_server.http_app:app"


def get(target: str, *headers: str, version: str = "1.1") -> bytes:
    return "\r\n".join([f"GET {target} HTTP/{version}", "Host: test", *headers, "", ""]).encode()


def post(target: str, body: bytes, *headers: str) -> bytes:
    lines = [f"POST {target} HTTP/1.1", "Host: test", *headers, f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode() + body


def chunked(target: str, wire: bytes, *headers: str) -> bytes:
    lines = [f"POST {target} HTTP/1.1", "Host: test", "Transfer-Encoding: chunked", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + wire


def open_gate(server: Process, gate: str) -> None:
    with RawClient(server) as other:
        assert other.request("GET", f"/open-gate?gate={gate}").status == 200


def path_of(response: Response) -> str:
    path: str = json.loads(response.body)["path"]
    return path


# Keep-alive.


def test_a_connection_serves_one_request_after_another(client: RawClient) -> None:
    for number in range(5):
        response = client.request("POST", f"/{number}", body=b"x" * number)
        assert (path_of(response), json.loads(response.body)["body"]) == (f"/{number}", "x" * number)
        assert response.get("connection") is None


def test_connection_close_is_answered_and_obeyed(client: RawClient) -> None:
    response = client.request("GET", "/", "Connection: close")
    assert (response.status, response.get("connection")) == (200, "close")
    assert client.read_until_close() == b""


def test_requests_after_connection_close_are_not_served(client: RawClient) -> None:
    client.send(get("/first", "Connection: close") + get("/second"))
    assert path_of(client.read_response()) == "/first"
    assert client.read_until_close() == b""


def test_http_1_0_ends_after_one_response(client: RawClient) -> None:
    client.send(b"GET /old HTTP/1.0\r\n\r\n")
    response = client.read_response()
    assert (path_of(response), response.version, response.get("connection")) == ("/old", "HTTP/1.1", None)
    assert client.read_until_close() == b""


def test_http_1_0_keeps_the_connection_on_request(client: RawClient) -> None:
    for _ in range(2):
        client.send(get("/old", "Connection: Keep-Alive", version="1.0"))
        response = client.read_response()
        assert (path_of(response), response.get("connection")) == ("/old", "keep-alive")


def test_close_outweighs_keep_alive(client: RawClient) -> None:
    client.send(get("/", "Connection: keep-alive", "Connection: close", version="1.0"))
    assert client.read_response().status == 200
    assert client.read_until_close() == b""


def test_http_1_0_gets_no_chunks(client: RawClient) -> None:
    client.send(get("/stream", "Connection: keep-alive", version="1.0"))
    response = client.read_response()
    assert (response.body, response.get("transfer-encoding"), response.get("connection")) == (b"part" * 3, None, None)


def test_empty_lines_before_a_request_are_skipped(client: RawClient) -> None:
    for _ in range(2):
        client.send(b"\r\n\r\n" + get("/"))
        assert client.read_response().status == 200


# Pipelining.


def test_pipelined_requests_are_answered_in_order(client: RawClient) -> None:
    client.send(b"".join(post(f"/{number}", b"x" * number) for number in range(50)))
    for number in range(50):
        response = client.read_response()
        assert (path_of(response), json.loads(response.body)["body"]) == (f"/{number}", "x" * number)


def test_requests_wait_for_the_previous_response(server: Process, client: RawClient, name: str) -> None:
    client.send(get(f"/wait?name={name}&gate={name}") + get(f"/two?name={name}2") + get("/three"))
    wait_for_note(server, name, "waiting")
    client.assert_silent(0.1)
    assert read_notes(server, f"{name}2") == []  # one request of a connection runs at a time
    open_gate(server, name)
    assert client.read_response().text == name
    assert [path_of(client.read_response()) for _ in range(2)] == ["/two", "/three"]


def test_the_body_of_a_pipelined_request_arrives_later(server: Process, client: RawClient, name: str) -> None:
    """The server reads the head of a pipelined request while another runs, and its body when that one is done."""
    client.send(get(f"/wait?name={name}&gate={name}") + post("/body", b"01234567")[:-4])
    wait_for_note(server, name, "waiting")
    open_gate(server, name)
    assert client.read_response().text == name
    client.send(b"4567")
    assert client.read_response().body == b"01234567"


def test_a_large_pipelined_body_arrives_whole(server: Process, client: RawClient, name: str) -> None:
    body = bytes(range(256)) * 4096
    client.send(get(f"/wait?name={name}&gate={name}"))
    wait_for_note(server, name, "waiting")
    client.send(post("/body", body)[:100_000])
    open_gate(server, name)
    client.send(post("/body", body)[100_000:] + get("/last"))
    assert client.read_response().text == name
    assert client.read_response().body == body
    assert path_of(client.read_response()) == "/last"


def test_a_pipelined_handshake_waits_for_earlier_responses(server: Process, client: RawClient, name: str) -> None:
    handshake = get("/refused", "Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 12")
    client.send(get(f"/wait?name={name}&gate={name}") + handshake)
    wait_for_note(server, name, "waiting")
    client.assert_silent(0.05)
    open_gate(server, name)
    assert client.read_response().text == name
    assert client.read_response().status == 426


# Bodies.


@pytest.mark.parametrize(
    ("wire", "body"),
    [
        (b"0\r\n\r\n", b""),
        (b"3\r\nabc\r\n0\r\n\r\n", b"abc"),
        (b"3\r\nabc\r\n00A\r\n0123456789\r\n0\r\n\r\n", b"abc0123456789"),
        (b"a\r\n0123456789\r\n0\r\n\r\n", b"0123456789"),
        (b'3;name=value;other="quoted"\r\nabc\r\n0;last\r\n\r\n', b"abc"),
        (b"3\r\nabc\r\n0\r\nX-Trailer: 1\r\nHost: other\r\n\r\n", b"abc"),
    ],
)
def test_chunks_are_joined_and_trailers_dropped(client: RawClient, wire: bytes, body: bytes) -> None:
    client.send(chunked("/chunked", wire) + get("/next"))
    response = json.loads(client.read_response().body)
    assert response["body"] == body.decode()
    assert response["headers"] == [["host", "test"], ["transfer-encoding", "chunked"]]
    assert path_of(client.read_response()) == "/next"


def test_requests_byte_by_byte(client: RawClient) -> None:
    client.send_pieces(chunked("/body", b"3\r\nabc\r\n2;x\r\nde\r\n0\r\nT: v\r\n\r\n"), pause=0)
    assert client.read_response().body == b"abcde"
    client.send_pieces(post("/body", b"abcde"), pause=0)
    assert client.read_response().body == b"abcde"


@pytest.mark.parametrize("size", [1, 65_535, 65_536, 65_537, 3_000_000])
def test_bodies_of_every_size_are_echoed(client: RawClient, size: int) -> None:
    body = (b"0123456789abcdef" * (size // 16 + 1))[:size]
    client.send(post("/body", body))
    assert client.read_response().body == body
    client.send(chunked("/body", b"%x\r\n%b\r\n0\r\n\r\n" % (size, body)))
    assert client.read_response().body == body


def test_body_and_response_stream_at_the_same_time(client: RawClient) -> None:
    client.send(chunked("/stream-back", b""))
    for part in (b"one", b"two", b"three"):
        client.send(b"%x\r\n%b\r\n" % (len(part), part))
        if part == b"one":
            assert client.read_head()[1] == 200
        assert client.read_chunk() == part
    client.send(b"0\r\n\r\n")
    assert client.read_chunk() == b""


# Expect: 100-continue.


def test_100_continue_is_sent_when_the_app_receives(server: Process, client: RawClient, name: str) -> None:
    client.send(post(f"/slow-ask?name={name}&gate={name}", b"abc", "Expect: 100-continue")[:-3])
    wait_for_note(server, name, "waiting")
    client.assert_silent(0.1)
    open_gate(server, name)
    assert client.read_response().status == 100
    client.send(b"abc")
    response = client.read_response()
    assert (response.status, response.body) == (200, b"abc")
    assert client.request("GET").status == 200


def test_no_100_if_the_body_has_arrived(client: RawClient) -> None:
    client.send(post("/body", b"abc", "Expect: 100-Continue"))
    assert client.read_response().status == 200


def test_no_100_for_http_1_0(client: RawClient) -> None:
    client.send(b"POST /body HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n")
    client.assert_silent(0.1)
    client.send(b"abc")
    assert client.read_response().body == b"abc"


# Unsupported upgrades.


@pytest.mark.parametrize("upgrade", ["h2c", "foo/2", "websocket"])
def test_an_unsupported_upgrade_is_ignored(client: RawClient, upgrade: str) -> None:
    options = (f"Upgrade: {upgrade}", "Connection: Upgrade, HTTP2-Settings", "HTTP2-Settings: AAMAAABkAAQAAP__")
    smuggled = post("/body", b"not a request of its own")
    client.send(post("/body", smuggled, *options) + chunked("/body", b"3\r\nabc\r\n0\r\nT: v\r\n\r\n", *options))
    assert client.read_response().body == smuggled
    assert client.read_response().body == b"abc"
    if upgrade != "websocket":
        client.send(get("/plain", *options) + get("/next"))
        assert path_of(client.read_response()) == "/plain"
        assert path_of(client.read_response()) == "/next"


def test_the_body_of_an_upgrade_request_arrives_later(client: RawClient) -> None:
    wire = post("/body", b"abcdef", "Upgrade: h2c", "Connection: Upgrade, close")
    client.send_pieces([wire[:20], wire[20:-3], wire[-3:]], pause=0.01)
    response = client.read_response()
    assert (response.body, response.get("connection")) == (b"abcdef", "close")


# Disconnects and half-closes.


def test_a_half_closed_client_gets_its_response(server: Process, client: RawClient, name: str) -> None:
    client.send(get(f"/half?name={name}"))
    client.half_close()
    assert client.read_response().body == b"still there"
    assert client.read_until_close() == b""
    assert read_notes(server, name) == ["http.disconnect", "over"]


def test_a_half_closed_client_gets_all_pipelined_responses(client: RawClient) -> None:
    client.send(get("/first") + post("/second", b"x") + get("/third"))
    client.half_close()
    assert [path_of(client.read_response()) for _ in range(3)] == ["/first", "/second", "/third"]
    assert client.read_until_close() == b""


def test_a_disconnect_ends_receive_and_send(server: Process, client: RawClient, name: str) -> None:
    client.send(get(f"/leave?name={name}"))
    wait_for_note(server, name, "waiting")
    client.close()
    wait_for_note(server, name, "over")
    assert read_notes(server, name) == ["waiting", "http.disconnect", "OSError: ClientDisconnected", "over"]


@pytest.mark.parametrize("start", ["", "&start=1"])
def test_a_return_after_a_disconnect_is_not_logged(
    servers: Servers, server: Process, client: RawClient, name: str, start: str
) -> None:
    client.send(get(f"/give-up?name={name}{start}"))
    wait_for_note(server, name, "waiting")
    client.close()
    wait_for_note(server, name, "over")
    with RawClient(server) as other:
        assert other.request("GET", f"/silent/{name}").status == 500
    servers.workers[0].wait_for(f"returned without answering on http '/silent/{name}'")
    assert "http '/give-up'" not in servers.workers[0].log()


@pytest.mark.parametrize("leave", ["close", "reset"])
def test_a_disconnect_during_the_response_ends_send(server: Process, name: str, leave: str) -> None:
    with RawClient(server, receive_buffer=4096) as client:
        client.send(get(f"/large?name={name}&size=100000000&part=10000"))
        client.read_head()
        getattr(client, leave)()
    wait_for_note(server, name, "over")
    size, error, _ = read_notes(server, name)
    assert error == "OSError: ClientDisconnected"
    assert size < 20_000_000


@pytest.mark.parametrize("leave", ["close", "half_close", "reset"])
def test_an_incomplete_body_is_a_disconnect(server: Process, client: RawClient, name: str, leave: str) -> None:
    client.send(post(f"/torn-body?name={name}", b"0123456789")[:-1])
    wait_for_note(server, name, "reading")
    getattr(client, leave)()
    wait_for_note(server, name, "over")
    assert read_notes(server, name) == ["reading", "disconnect", "over"]


def test_an_invalid_body_is_a_400_and_a_disconnect(server: Process, client: RawClient, name: str) -> None:
    client.send(chunked(f"/torn-body?name={name}", b"3\r\nabc\r\n"))
    wait_for_note(server, name, "reading")
    client.send(b"this is no chunk\r\n")
    assert client.read_response().status == 400
    assert client.read_until_close() == b""
    wait_for_note(server, name, "over")
    assert read_notes(server, name) == ["reading", "disconnect", "over"]


def test_a_complete_response_is_followed_by_a_disconnect(server: Process, client: RawClient, name: str) -> None:
    assert client.request("GET", f"/after?name={name}").body == b"done"
    wait_for_note(server, name, "over")
    assert read_notes(server, name) == ["http.disconnect", "over"]
