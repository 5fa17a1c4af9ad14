"""Responses over real sockets, on both layers: the bytes at the client for the events of the app."""

import json

import pytest

from support.processes import Process
from support.raw import RawClient
from support.servers import Servers
from support.websocket import read_notes, wait_for_note

APP = "interface_server.http_app:app"


# Framing.


def test_a_whole_body_has_a_length_and_a_stream_is_chunked(client: RawClient) -> None:
    response = client.request("GET", "/refuse-early")
    assert (response.get("content-length"), response.get("transfer-encoding")) == ("13", None)
    stream = client.request("GET", "/stream")
    assert (stream.body, stream.get("content-length"), stream.get("transfer-encoding")) == (
        b"part" * 3,
        None,
        "chunked",
    )
    length = client.request("GET", "/stream?length=12")
    assert (length.body, length.get("content-length"), length.get("transfer-encoding")) == (b"part" * 3, "12", None)


def test_standard_headers(client: RawClient) -> None:
    response = client.request("GET", "/stream")
    assert (response.version, response.reason, response.get("server")) == ("HTTP/1.1", "OK", "asgibus")
    assert (response.get("date") or "").endswith("GMT")
    response = client.request("POST", "/headers", body=b"server=mine\ndate=today\nX-A=1\nx-a=2")
    assert (response.get("server"), response.get("date"), response.get_all("x-a")) == ("mine", "today", ["1", "2"])


def test_the_apps_transfer_encoding_is_ignored(client: RawClient) -> None:
    response = client.request("POST", "/headers", body=b"Transfer-Encoding=gzip, chunked\nx=y")
    assert (response.body, response.get("transfer-encoding"), response.get("x")) == (b"ok", None, "y")
    assert client.request("GET").status == 200


@pytest.mark.parametrize(
    ("value", "expected", "open_after"),
    [
        ("close", "close", False),
        ("Close", "close", False),
        ("keep-alive", None, True),
        ("upgrade", "upgrade", True),
        ("x-one, close", "x-one|close", False),
    ],
)
def test_an_app_may_close_the_connection(client: RawClient, value: str, expected: str | None, open_after: bool) -> None:
    response = client.request("POST", "/headers", body=b"Connection=" + value.encode())
    assert response.get_all("connection") == (expected.split("|") if expected else [])
    if open_after:
        assert client.request("GET").status == 200
    else:
        assert client.read_until_close() == b""


def test_a_keep_alive_of_the_app_does_not_contradict_the_close(client: RawClient) -> None:
    response = client.request("POST", "/headers", "Connection: close", body=b"connection=keep-alive")
    assert response.get("connection") == "close"


@pytest.mark.parametrize("target", ["/refuse-early", "/stream", "/stream?length=12", "/boom"])
def test_head_has_the_headers_and_no_body(client: RawClient, target: str) -> None:
    client.send(f"HEAD {target} HTTP/1.1\r\nHost: test\r\n\r\n".encode())
    response = client.read_response("HEAD")
    assert response.status in {200, 403, 500}
    assert response.get("transfer-encoding") is None
    if "length" in target:
        assert response.get("content-length") == "12"
    assert client.request("GET").status == 200


@pytest.mark.parametrize(
    ("status", "length", "expected"), [(204, None, None), (204, "0", None), (304, None, None), (304, "17", "17")]
)
def test_responses_without_a_body(client: RawClient, status: int, length: str | None, expected: str | None) -> None:
    query = f"status={status}&body=none+may+follow" + (f"&length={length}" if length else "")
    response = client.request("GET", f"/empty?{query}")
    assert (response.status, response.get("content-length")) == (status, expected)
    assert response.get("transfer-encoding") is None
    assert client.request("GET").status == 200


def test_an_unknown_status_has_an_empty_reason(client: RawClient) -> None:
    response = client.request("GET", "/empty?status=799")
    assert (response.status, response.reason, response.body) == (799, "", b"")


def test_a_half_closed_pipeline_is_answered_at_the_pace_of_the_client(server: Process) -> None:
    count, size = 8, 2_000_000
    with RawClient(server, receive_buffer=16384) as client:
        client.send(f"GET /large?size={size} HTTP/1.1\r\nHost: test\r\n\r\n".encode() * count)
        client.half_close()
        assert [len(client.read_response().body) for _ in range(count)] == [size] * count
        assert client.read_until_close() == b""


@pytest.mark.parametrize("part", [3_000_000, 1_000_000, 1000, 100_000])
def test_large_responses_arrive_whole(client: RawClient, part: int) -> None:
    response = client.request("GET", f"/large?size=3000000&part={part}")
    assert response.body == bytes(3_000_000)


# Invalid and incomplete responses.


@pytest.mark.parametrize(
    ("length", "parts", "received"),
    [(3, "ab,cd", b"ab"), (3, "abcd", b""), (5, "abc", b""), (5, "ab,c", b"ab"), (0, "a", b"")],
)
def test_a_wrong_content_length_raises_and_cuts(
    server: Process, client: RawClient, name: str, length: int, parts: str, received: bytes
) -> None:
    client.send(f"GET /mismatch?name={name}&length={length}&parts={parts} HTTP/1.1\r\n".encode())
    client.send(b"Host: test\r\nConnection: close\r\n\r\n")
    wire = client.read_until_close()
    head, _, body = wire.partition(b"\r\n\r\n")
    if head.startswith(b"HTTP/1.1 200"):
        assert b"content-length: %d\r\n" % length in head + b"\r\n"
        assert body == received
        assert len(body) < length or length == 0
    else:  # nothing of the response was written yet
        assert head.startswith(b"HTTP/1.1 500")
    assert read_notes(server, name) == ["RuntimeError", "over"]


def test_an_exception_before_the_response_is_a_500(servers: Servers, client: RawClient) -> None:
    response = client.request("GET", "/boom")
    assert (response.status, response.body) == (500, b"Internal Server Error")
    assert client.request("GET").status == 200
    servers.workers[0].wait_for(r"(?s)the app raised on http '/boom'.*ArithmeticError: before the response")


def test_a_return_without_a_response_is_a_500(servers: Servers, client: RawClient) -> None:
    assert client.request("GET", "/silent").status == 500
    assert client.request("GET").status == 200
    servers.workers[0].wait_for("the app returned without answering on http '/silent'")


@pytest.mark.parametrize("target", ["/stream?raise=1", "/stream?return=1", "/stream?raise=1&length=100"])
def test_an_incomplete_response_is_cut(client: RawClient, target: str) -> None:
    client.send(f"GET {target} HTTP/1.1\r\nHost: test\r\n\r\n".encode())
    with pytest.raises((EOFError, ConnectionResetError)):
        client.read_response()


def test_an_incomplete_response_is_cut_for_http_1_0(client: RawClient) -> None:
    client.send(b"GET /stream?raise=1 HTTP/1.0\r\n\r\n")
    with pytest.raises(ConnectionResetError):  # the end of the connection would be the end of the body
        receive_all(client)


def receive_all(client: RawClient) -> None:
    while client.socket.recv(65536):
        pass


def test_a_start_without_a_body_is_a_500_or_a_cut(client: RawClient) -> None:
    client.send(b"GET /start-only HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")
    wire = client.read_until_close()
    assert wire.startswith(b"HTTP/1.1 500") or not wire.endswith(b"0\r\n\r\n")


# Early responses.


@pytest.mark.parametrize("size", [5, 1_000_000])
def test_a_response_before_the_body_was_read_is_seen(client: RawClient, size: int) -> None:
    client.send(b"POST /unread?size=%d HTTP/1.1\r\nHost: test\r\nContent-Length: 8000000\r\n\r\n" % size)
    client.send(bytes(500_000))
    response = client.read_response()
    assert (response.status, response.body) == (413, bytes(size))
    client.send(bytes(2_000_000))  # the server discards this, and does not reset the connection
    assert client.read_until_close() == b""


def test_a_response_while_the_window_is_full_is_seen(client: RawClient) -> None:
    client.send(b"POST /unread?late=1 HTTP/1.1\r\nHost: test\r\nContent-Length: 8000000\r\n\r\n")
    client.send(bytes(4_000_000))
    assert client.read_response().status == 413
    assert client.read_until_close() == b""


def test_a_complete_unread_body_keeps_the_connection(client: RawClient) -> None:
    assert client.request("POST", "/unread?late=1", body=bytes(100)).status == 413
    assert client.request("GET").status == 200


# Invalid events.


def test_invalid_events_raise_out_of_send(server: Process, client: RawClient, name: str) -> None:
    assert client.request("GET", f"/invalid?name={name}").body == b"alive"
    wait_for_note(server, name, "over")
    *results, _ = read_notes(server, name)
    assert len(results) == 31
    assert [result for result in results if result[1] != result[2]] == []


# Early hints and trailers.


def test_early_hints_come_before_the_response(client: RawClient) -> None:
    client.send(b"GET /hint HTTP/1.1\r\nHost: test\r\n\r\n")
    first, second, final = [client.read_response() for _ in range(3)]
    assert (first.status, first.get_all("link")) == (103, ["</a.css>; rel=preload", "</b.js>; rel=preload"])
    assert (second.status, second.get("link")) == (103, "</c.js>; rel=preload")
    assert (final.status, final.body) == (200, b"hinted")


def test_early_hints_behind_the_start_come_while_the_head_is_not_written(client: RawClient) -> None:
    client.send(b"GET /late-hint HTTP/1.1\r\nHost: test\r\n\r\n")
    hint, final = client.read_response(), client.read_response()
    assert (hint.status, hint.get("link")) == (103, "</a.css>; rel=preload")
    assert (final.status, final.get("link"), final.body) == (200, None, b"first last")


def test_early_hints_of_a_pipeline_come_before_their_own_response(client: RawClient) -> None:
    client.send(b"GET /stream HTTP/1.1\r\nHost: test\r\n\r\nHEAD /hint HTTP/1.1\r\nHost: test\r\n\r\n")
    assert client.read_response().body == b"part" * 3
    assert [client.read_response("HEAD").status for _ in range(3)] == [103, 103, 200]


def test_no_early_hints_for_http_1_0(client: RawClient) -> None:
    client.send(b"GET /hint HTTP/1.0\r\n\r\n")
    assert client.read_response().status == 200


def test_trailers_are_sent_on_request(server: Process, client: RawClient, name: str) -> None:
    for te in ("trailers", "gzip;q=0.5, Trailers"):
        response = client.request("GET", f"/trailers?name={name}", f"TE: {te}", "Connection: TE")
        assert (response.body, response.trailers) == (b"body", [("x-sum", "1"), ("x-more", "2")])
        assert (response.get("transfer-encoding"), response.get("trailer")) == ("chunked", "x-sum, x-more")
        assert client.request("GET").status == 200
    assert read_notes(server, name)[0] is True


def test_a_body_of_known_length_with_trailers_is_chunked(client: RawClient) -> None:
    response = client.request("GET", "/trailers?length=4", "TE: trailers")
    assert (response.body, response.trailers) == (b"body", [("x-sum", "1"), ("x-more", "2")])
    assert (response.get("transfer-encoding"), response.get("content-length")) == ("chunked", None)
    plain = client.request("GET", "/trailers?length=4")
    assert (plain.body, plain.get("transfer-encoding"), plain.get("content-length")) == (b"body", None, "4")


def test_a_response_without_announced_trailers_is_cut_off(client: RawClient) -> None:
    client.send(b"GET /trailers?none=1 HTTP/1.1\r\nHost: test\r\nTE: trailers\r\n\r\n")
    client.read_head()
    assert client.read_chunk() == b"body"
    assert client.read_until_close() == b""  # without the last chunk


def test_no_trailers_without_a_request(server: Process, client: RawClient, name: str) -> None:
    for headers in ([], ["TE: gzip, x-trailers"]):
        response = client.request("GET", f"/trailers?name={name}", *headers)
        assert (response.body, response.trailers, response.get("trailer")) == (b"body", [], None)
        assert client.request("GET").status == 200
    assert read_notes(server, name)[0] is False


def test_no_trailers_for_head(server: Process, client: RawClient, name: str) -> None:
    response = client.request("HEAD", f"/trailers?name={name}&length=4", "TE: trailers")
    assert (response.get("content-length"), response.get("trailer")) == ("4", None)
    assert client.request("GET").status == 200
    assert read_notes(server, name)[0] is False


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_no_trailers_for_http_1_0(client: RawClient, method: str) -> None:
    client.send(f"{method} /trailers HTTP/1.0\r\nTE: trailers\r\n\r\n".encode())
    head, _, body = client.read_until_close().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    assert body == (b"body" if method == "GET" else b"")


def test_extensions_in_the_scope(client: RawClient) -> None:
    scope = json.loads(client.request("GET", "/", "TE: trailers").body)
    assert scope["extensions"] == ["asgibus", "http.response.early_hint", "http.response.trailers"]
    client.send(b"GET / HTTP/1.0\r\nTE: trailers\r\n\r\n")
    assert json.loads(client.read_until_close().partition(b"\r\n\r\n")[2])["extensions"] == ["asgibus"]
