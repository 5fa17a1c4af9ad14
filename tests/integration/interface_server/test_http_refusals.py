"""Rejection of invalid HTTP and of request smuggling. Bytes that follow are never parsed as a request."""

import json
import uuid
from collections.abc import Iterator

import pytest

from support.processes import Process
from support.raw import RawClient
from support.servers import serving
from support.websocket import read_notes

APP = "interface_server.http_app:app"
HEAD = b"POST / HTTP/1.1\r\nHost: test\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest) -> Iterator[Process]:
    with serving(request, APP, layer="memory") as servers:
        yield servers.interfaces[0]


REFUSED: dict[str, tuple[int, bytes]] = {
    # Two lengths of a body, or a length that parsers read differently.
    "two equal lengths": (400, HEAD + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc"),
    "two lengths": (400, HEAD + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabc"),
    "a list of lengths": (400, HEAD + b"Content-Length: 3, 3\r\n\r\nabc"),
    "length with a sign": (400, HEAD + b"Content-Length: +3\r\n\r\nabc"),
    "negative length": (400, HEAD + b"Content-Length: -3\r\n\r\nabc"),
    "length in hex": (400, HEAD + b"Content-Length: 0x3\r\n\r\nabc"),
    "empty length": (400, HEAD + b"Content-Length:\r\n\r\nabc"),
    "length with an underscore": (400, HEAD + b"Content-Length: 1_0\r\n\r\nabc"),
    "length that overflows": (400, HEAD + b"Content-Length: 18446744073709551617\r\n\r\na"),
    "length and chunked": (400, HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    "chunked and length": (400, HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n"),
    "chunked twice": (400, HEAD + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    "chunked twice in a list": (400, HEAD + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n"),
    "chunked not last": (400, HEAD + b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n"),
    "gzip, chunked": (501, HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
    "identity": (501, HEAD + b"Transfer-Encoding: identity\r\n\r\n"),
    "unknown coding": (501, HEAD + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"),
    "coding with a control byte": (400, HEAD + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n"),
    "coding in quotes": (501, HEAD + b'Transfer-Encoding: "chunked"\r\n\r\n0\r\n\r\n'),
    "chunked in HTTP/1.0": (400, b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    "a space before the colon": (400, HEAD + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n"),
    "a folded coding": (400, HEAD + b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n"),
    # Chunks.
    "no chunk": (400, CHUNKED + b"hello\r\n"),
    "chunk too long": (400, CHUNKED + b"3\r\nabcd\r\n0\r\n\r\n"),
    "negative chunk": (400, CHUNKED + b"-3\r\nabc\r\n0\r\n\r\n"),
    "chunk in 0x": (400, CHUNKED + b"0x3\r\nabc\r\n0\r\n\r\n"),
    "chunk size that overflows": (400, CHUNKED + b"10000000000000003\r\nabc\r\n0\r\n\r\n"),
    "chunk with bare LF": (400, CHUNKED + b"3\nabc\n0\n\n"),
    "chunk ending in LF": (400, CHUNKED + b"3\r\nabc\n0\r\n\r\n"),
    "chunk size with a space": (400, CHUNKED + b"3 \r\nabc\r\n0\r\n\r\n"),
    "extension with LF": (400, CHUNKED + b"3;a\nb\r\nabc\r\n0\r\n\r\n"),
    "extension with NUL": (400, CHUNKED + b"3;\x00\r\nabc\r\n0\r\n\r\n"),
    "coding in the trailers": (400, CHUNKED + b"0\r\nTransfer-Encoding: gzip\r\n\r\n"),
    "length in the trailers": (400, CHUNKED + b"0\r\nContent-Length: 5\r\n\r\n"),
    # Host.
    "no host": (400, b"GET / HTTP/1.1\r\n\r\n"),
    "two hosts": (400, b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"),
    "two equal hosts": (400, b"GET / HTTP/1.1\r\nHost: a\r\nhost: a\r\n\r\n"),
    "two hosts in HTTP/1.0": (400, b"GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n"),
    "a path as host": (400, b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n"),
    "a host with a space": (400, b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n"),
    "a host with a user": (400, b"GET / HTTP/1.1\r\nHost: me@a\r\n\r\n"),
    **{
        f"host {host!r}": (400, b"GET / HTTP/1.1\r\nHost: " + host + b"\r\n\r\n")
        for host in (b"]ufd", b"[::1", b"test:99999", b"::1", b"[g::1]", b"[]", b":80", b"a:b", b"a:80:80", b"%zz")
    },
    **{
        f"authority {authority!r}": (400, b"GET http://" + authority + b"/ HTTP/1.1\r\nHost: test\r\n\r\n")
        for authority in (b"test:65536", b"[::1]:99999", b"me@[::1", b"%4", b":80")
    },
    "a host that is not ASCII": (400, b"GET / HTTP/1.1\r\nHost: \xc3\xbc\r\n\r\n"),
    # Heads.
    "NUL in a value": (400, HEAD + b"A: b\x00c\r\n\r\n"),
    "control byte in a value": (400, HEAD + b"A: b\x1bc\r\n\r\n"),
    "DEL in a value": (400, HEAD + b"A: b\x7fc\r\n\r\n"),
    "CR in a value": (400, HEAD + b"A: b\rc\r\n\r\n"),
    "LF in a value": (400, HEAD + b"A: b\nC: d\r\n\r\n"),
    "a folded line": (400, HEAD + b"A: b\r\n c\r\n\r\n"),
    "a line that begins with a space": (400, b"GET / HTTP/1.1\r\n A: b\r\nHost: test\r\n\r\n"),
    "bare LF": (400, b"GET / HTTP/1.1\nHost: test\n\n"),
    "bare CR": (400, b"GET / HTTP/1.1\rHost: test\r\r"),
    "a name with a space": (400, HEAD + b"A b: c\r\n\r\n"),
    "a name with a control byte": (400, HEAD + b"A\x01: c\r\n\r\n"),
    "a name that is not ASCII": (400, HEAD + b"\xfc: c\r\n\r\n"),
    "no name": (400, HEAD + b": c\r\n\r\n"),
    "no colon": (400, HEAD + b"abc\r\n\r\n"),
    # Request lines.
    "control byte in the target": (400, b"GET /\x01 HTTP/1.1\r\nHost: test\r\n\r\n"),
    "NUL in the target": (400, b"GET /\x00 HTTP/1.1\r\nHost: test\r\n\r\n"),
    "tab in the target": (400, b"GET /\ta HTTP/1.1\r\nHost: test\r\n\r\n"),
    "DEL in the target": (400, b"GET /\x7f HTTP/1.1\r\nHost: test\r\n\r\n"),
    "space in the target": (400, b"GET /a b HTTP/1.1\r\nHost: test\r\n\r\n"),
    "target that is not ASCII": (400, b"GET /\xc3\xbc HTTP/1.1\r\nHost: test\r\n\r\n"),
    "query that is not ASCII": (400, b"GET /?\xc3\xbc HTTP/1.1\r\nHost: test\r\n\r\n"),
    "relative target": (400, b"GET index.html HTTP/1.1\r\nHost: test\r\n\r\n"),
    "query only": (400, b"GET ?a HTTP/1.1\r\nHost: test\r\n\r\n"),
    "star for GET": (400, b"GET * HTTP/1.1\r\nHost: test\r\n\r\n"),
    "star and more": (400, b"OPTIONS *a HTTP/1.1\r\nHost: test\r\n\r\n"),
    "URL without a host": (400, b"GET http:///a HTTP/1.1\r\nHost: test\r\n\r\n"),
    "URL with two users": (400, b"GET http://a@b@/c HTTP/1.1\r\nHost: test\r\n\r\n"),
    "no version": (505, b"GET /\r\nHost: test\r\n\r\n"),
    "HTTP/0.9": (505, b"GET / HTTP/0.9\r\nHost: test\r\n\r\n"),
    "HTTP/1.2": (400, b"GET / HTTP/1.2\r\nHost: test\r\n\r\n"),
    "HTTP/2.0": (505, b"GET / HTTP/2.0\r\nHost: test\r\n\r\n"),
    "HTTP/2 preface": (400, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    "space behind the version": (400, b"GET / HTTP/1.1 \r\nHost: test\r\n\r\n"),
    "unknown method": (501, b"BREW / HTTP/1.1\r\nHost: test\r\n\r\n"),
    "method in lower case": (501, b"get / HTTP/1.1\r\nHost: test\r\n\r\n"),
    "CONNECT": (501, b"CONNECT test:443 HTTP/1.1\r\nHost: test\r\n\r\n"),
    "RTSP with a method of HTTP": (505, b"GET / RTSP/1.0\r\nCSeq: 1\r\n\r\n"),
    "RTSP with a Host": (505, b"OPTIONS * RTSP/1.1\r\nHost: test\r\n\r\n"),
    "RTSP": (501, b"SETUP / RTSP/1.0\r\nHost: test\r\n\r\n"),
    "unknown expectation": (417, HEAD + b"Expect: miracles\r\nContent-Length: 0\r\n\r\n"),
    "TLS": (501, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"),
}


@pytest.mark.parametrize("before", [b"", b"GET /before HTTP/1.1\r\nHost: test\r\n\r\n"], ids=["", "pipelined"])
@pytest.mark.parametrize("label", REFUSED)
def test_invalid_requests_are_rejected(server: Process, label: str, before: bytes) -> None:
    status, wire = REFUSED[label]
    name = uuid.uuid4().hex
    smuggled = f"GET /smuggled?name={name} HTTP/1.1\r\nHost: test\r\n\r\n".encode()
    with RawClient(server) as client:
        client.send(before + wire + smuggled)
        if before:
            assert json.loads(client.read_response().body)["path"] == "/before"
        response = client.read_response()
        assert (response.status, response.get("connection")) == (status, "close"), response.text
        assert response.get("content-type") == "text/plain; charset=utf-8"
        assert client.read_until_close() == b""
    assert read_notes(server, name) == []


def test_a_rejected_head_request_gets_no_body(server: Process) -> None:
    with RawClient(server) as client:
        client.send(b"HEAD / HTTP/1.1\r\n\r\n")
        head, _, body = client.read_until_close().partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 400")
        assert body == b""


ACCEPTED: dict[str, tuple[bytes, bytes]] = {
    "space behind the length": (HEAD + b"Content-Length: 3 \t\r\n\r\nabc", b"abc"),
    "length with zeros": (HEAD + b"Content-Length: 0003\r\n\r\nabc", b"abc"),
    "Chunked": (HEAD + b"Transfer-Encoding: Chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", b"abc"),
    "space behind the coding": (HEAD + b"Transfer-Encoding: chunked \r\n\r\n3\r\nabc\r\n0\r\n\r\n", b"abc"),
    "an empty host": (b"GET / HTTP/1.1\r\nHost:\r\n\r\n", b""),
    "an IPv6 host": (b"GET / HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", b""),
    "a host with the last port": (b"GET / HTTP/1.1\r\nHost: a.b_c%20:65535\r\n\r\n", b""),
    "a target that reads like RTSP": (b"GET / HTTP/1.1\r\nHost: test\r\nX: GET /a RTSP/1.0\r\n\r\n", b""),
    **{
        f"trailer {trailer!r}": (CHUNKED + b"3\r\nabc\r\n0\r\n" + trailer + b"\r\n\r\n", b"abc")
        for trailer in (b"Connection: close", b"Proxy-Connection: close", b"Connection: upgrade\r\nUpgrade: websocket")
    },
    "every byte that a value may hold": (HEAD + b"A: \t!~\x80\xff\r\nContent-Length: 0\r\n\r\n", b""),
    "every byte that a name may hold": (HEAD + b"!#$%&'*+-.^_`|~09azAZ: b\r\nContent-Length: 0\r\n\r\n", b""),
    "GET with a body": (b"GET / HTTP/1.1\r\nHost: test\r\nContent-Length: 3\r\n\r\nabc", b"abc"),
    "no length is no body": (HEAD + b"\r\n", b""),
}


@pytest.mark.parametrize("label", ACCEPTED)
def test_unusual_valid_requests_are_accepted(server: Process, label: str) -> None:
    wire, body = ACCEPTED[label]
    with RawClient(server) as client:
        client.send(wire + b"GET /next HTTP/1.1\r\nHost: test\r\n\r\n")
        assert json.loads(client.read_response().body)["body"] == body.decode()
        assert json.loads(client.read_response().body)["path"] == "/next"
