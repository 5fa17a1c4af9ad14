"""Responses that are complete before the request body: clients read them, and learn whether the connection stays."""

import http.client
import json

import httpx
import pytest

from support.processes import Process
from support.raw import RawClient, Response
from support.websocket import handshake, read_notes

APP = "interface_server.http_app:app"
SHORT = 200_000  # a rest of the body that is read and dropped
LONG = 3_000_000  # one for which the client would wait


def post(target: str, length: int, *headers: str, version: str = "1.1") -> bytes:
    lines = [f"POST {target} HTTP/{version}", "Host: test", f"Content-Length: {length}", *headers]
    return "\r\n".join([*lines, "", ""]).encode()


def chunked_post(target: str, chunks: bytes) -> bytes:
    return f"POST {target} HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n".encode() + chunks


def path_of(response: Response) -> str:
    path: str = json.loads(response.body)["path"]
    return path


@pytest.mark.parametrize("size", [100, SHORT, LONG])
def test_repeated_posts_all_get_the_early_response(server: Process, size: int) -> None:
    body, count = bytes(size), 10
    with httpx.Client() as client:
        assert [client.post(f"{server.url}/unread", content=body).status_code for _ in range(count)] == [413] * count
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    for _ in range(count):
        connection.request("POST", "/unread", body)
        response = connection.getresponse()
        assert (response.status, len(response.read())) == (413, 5)
    connection.close()


@pytest.mark.parametrize("size", [1, 100, SHORT])
def test_a_short_body_rest_is_dropped_and_the_connection_kept(client: RawClient, size: int) -> None:
    for _ in range(2):
        client.send(post("/unread", size))
        response = client.read_response()
        assert (response.status, response.get("connection")) == (413, None)
        client.send(bytes(size) + b"GET /next HTTP/1.1\r\nHost: test\r\n\r\n")
        assert path_of(client.read_response()) == "/next"


def test_a_body_rest_is_never_parsed_as_a_request(server: Process, client: RawClient, name: str) -> None:
    smuggled = f"GET /smuggled?name={name} HTTP/1.1\r\nHost: test\r\n\r\n".encode()
    client.send(post("/unread", len(smuggled)))
    assert client.read_response().status == 413
    client.send_pieces([smuggled[:9], smuggled[9:]])
    assert path_of(client.request("GET", "/next")) == "/next"
    assert read_notes(server, name) == []


def test_requests_after_an_early_response_are_served(client: RawClient) -> None:
    client.send(post("/unread", 5) + b"ab")
    assert client.read_response().status == 413
    client.send(b"cde" + post("/body", 3) + b"abc" + post("/unread", 0) + b"GET /last HTTP/1.1\r\nHost: test\r\n\r\n")
    assert client.read_response().body == b"abc"
    assert client.read_response().status == 413
    assert path_of(client.read_response()) == "/last"


def test_a_long_body_rest_closes_the_connection(server: Process, name: str) -> None:
    with RawClient(server) as client:
        client.send(post("/unread", LONG))
        response = client.read_response()
        assert (response.status, response.get("connection")) == (413, "close")
        client.send(bytes(LONG) + f"GET /next?name={name} HTTP/1.1\r\nHost: test\r\n\r\n".encode())
        assert client.read_until_close() == b""
    assert read_notes(server, name) == []


def test_a_body_rest_of_unknown_length_closes_the_connection(client: RawClient) -> None:
    client.send(chunked_post("/unread", b"3\r\nabc\r\n"))
    response = client.read_response()
    assert (response.status, response.get("connection")) == (413, "close")
    client.send(b"3\r\nabc\r\n0\r\n\r\n")
    assert client.read_until_close() == b""


def test_a_complete_chunked_body_keeps_the_connection(client: RawClient) -> None:
    client.send(chunked_post("/unread?late=1", b"3\r\nabc\r\n0\r\n\r\n"))
    response = client.read_response()
    assert (response.status, response.get("connection")) == (413, None)
    assert path_of(client.request("GET", "/next")) == "/next"


def test_the_server_closes_after_the_client_has_written_its_body(client: RawClient) -> None:
    """The server does not half-close while a client writes: some clients consider that a closed connection."""
    client.send(post("/unread", LONG))
    assert client.read_response().status == 413
    for _ in range(3):
        client.send(bytes(LONG // 3 - 1))
        client.assert_silent(0.1)
    client.send(bytes(LONG - 3 * (LONG // 3 - 1)))
    assert client.read_until_close(1.0) == b""


def test_http_1_0_closes_for_a_long_body_rest(client: RawClient) -> None:
    client.send(post("/unread", 5, "Connection: keep-alive", version="1.0"))
    assert client.read_response().get("connection") == "keep-alive"
    client.send(b"abcde" + post("/unread", LONG, "Connection: keep-alive", version="1.0"))
    assert client.read_response().get("connection") is None
    client.send(bytes(LONG))
    assert client.read_until_close() == b""


def test_a_stream_to_http_1_0_ends_at_once(client: RawClient) -> None:
    """A streamed body to HTTP/1.0 ends with the connection, which is closed at once."""
    client.send(post("/stream", LONG, version="1.0"))
    client.read_head()
    assert client.read_until_close(0.8) == b"part" * 3


@pytest.mark.parametrize(
    ("method", "target", "status"),
    [("HEAD", "/unread", 413), ("POST", "/empty?status=204", 204), ("POST", "/empty?status=304", 304)],
)
@pytest.mark.parametrize("size", [5, LONG])
def test_an_early_response_without_a_body(client: RawClient, method: str, target: str, status: int, size: int) -> None:
    client.send(f"{method} {target} HTTP/1.1\r\nHost: test\r\nContent-Length: {size}\r\n\r\n".encode())
    response = client.read_response(method)
    assert (response.status, response.get("connection")) == (status, None if size == 5 else "close")
    client.send(bytes(size))
    if size == 5:
        assert path_of(client.request("GET", "/next")) == "/next"
    else:
        assert client.read_until_close() == b""


@pytest.mark.parametrize("size", [5, LONG])
def test_a_streamed_response_ends_before_the_request_body(client: RawClient, size: int) -> None:
    client.send(post("/stream", size))
    response = client.read_response()
    assert (response.body, response.get("connection")) == (b"part" * 3, None if size == 5 else "close")
    client.send(bytes(size))
    if size == 5:
        assert path_of(client.request("GET", "/next")) == "/next"
    else:
        assert client.read_until_close() == b""


@pytest.mark.parametrize("size", [20, LONG])
def test_a_response_begins_while_the_body_is_read(client: RawClient, size: int) -> None:
    client.send(post("/stream-back", size) + b"first")
    *_, headers = client.read_head()
    assert ("connection" in dict(headers)) == (size == LONG)
    assert client.read_chunk() == b"first"
    client.send(bytes(size - 5))
    assert b"".join(iter(client.read_chunk, b"")) == bytes(size - 5)
    client.read_exactly(2)
    if size == 20:
        assert path_of(client.request("GET", "/next")) == "/next"
    else:
        assert client.read_until_close() == b""


# Expect: 100-continue.


def test_a_final_response_instead_of_100_closes_the_connection(client: RawClient) -> None:
    """The client may send the body or not, so the following bytes would be ambiguous."""
    client.send(post("/refuse-early", 3, "Expect: 100-continue"))
    response = client.read_response()
    assert (response.status, response.get("connection")) == (403, "close")
    assert client.read_until_close() == b""


def test_a_body_sent_without_waiting_for_100_keeps_the_connection(client: RawClient) -> None:
    client.send(post("/unread?late=1", 3, "Expect: 100-continue") + b"a")
    while (response := client.read_response()).status == 100:
        pass
    assert (response.status, response.get("connection")) == (413, None)
    client.send(b"bc")
    assert path_of(client.request("GET", "/next")) == "/next"


def test_an_early_response_after_100_keeps_the_connection(client: RawClient) -> None:
    client.send(post("/unread?late=1", 3, "Expect: 100-continue"))
    assert client.read_response().status == 100
    client.send(b"a")
    response = client.read_response()
    assert (response.status, response.get("connection")) == (413, None)
    client.send(b"bc")
    assert path_of(client.request("GET", "/next")) == "/next"


# The answers of the server itself.


@pytest.mark.parametrize("header", ["Expect: miracles", "Transfer-Encoding: gzip", "Host: second"])
def test_a_rejected_request_is_readable_to_the_end(client: RawClient, header: str) -> None:
    client.send(post("/", LONG, header))
    client.send(bytes(LONG))
    response = client.read_response()
    assert response.status in {400, 417, 501}
    assert response.get("connection") == "close"
    assert client.read_until_close() == b""


@pytest.mark.parametrize("size", [100_000, LONG])
def test_a_rejected_handshake_is_answered_in_spite_of_more_input(client: RawClient, size: int) -> None:
    wrong = handshake("/").replace(b"Version: 13", b"Version: 12")
    client.send(wrong)
    client.send(bytes(size))
    assert client.read_response().status == 426
    assert client.read_until_close() == b""
