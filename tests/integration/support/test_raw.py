import contextlib
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from support.deadline import TooLate
from support.raw import RawClient, Response

Serve = Callable[[bytes], tuple[str, int]]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """A peer that sends the given bytes to its first client, whatever that says, and closes when the client does."""
    with contextlib.ExitStack() as stack:

        def serve(answer: bytes, keep_open: bool = False) -> tuple[str, int]:
            listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))

            def run() -> None:
                connection, _ = listener.accept()
                with connection, contextlib.suppress(OSError):
                    connection.sendall(answer)
                    connection.shutdown(socket.SHUT_WR)
                    while connection.recv(65536):
                        pass

            thread = threading.Thread(target=run)
            thread.start()
            stack.callback(thread.join)
            address: tuple[str, int] = listener.getsockname()
            return address

        yield serve


@pytest.mark.parametrize(
    ("method", "wire", "body", "rest"),
    [
        ("GET", b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabcd", b"abc", b"d"),
        ("GET", b"HTTP/1.1 200 OK\r\n\r\nabc", b"abc", b""),
        ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nx", b"", b"x"),
        ("GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 3\r\n\r\nx", b"", b"x"),
        (
            "GET",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;a=b\r\nab\r\n1\r\nc\r\n0\r\n\r\nx",
            b"abc",
            b"x",
        ),
    ],
)
def test_the_body_ends_where_it_should(serve: Serve, method: str, wire: bytes, body: bytes, rest: bytes) -> None:
    with RawClient(serve(wire)) as client:
        assert client.read_response(method).body == body
        assert client.read_until_close() == rest


def test_informational_responses_come_one_by_one(serve: Serve) -> None:
    wire = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nA: 1\r\na: 2\r\nContent-Length: 0\r\n\r\n"
    with RawClient(serve(wire)) as client:
        assert client.read_response() == Response("HTTP/1.1", 100, "Continue", [], b"", [])
        response = client.read_response()
        assert response.headers == [("A", "1"), ("a", "2"), ("Content-Length", "0")]
        assert response.get_all("a") == ["1", "2"]
        assert response.get("content-length") == "0"


def test_trailers(serve: Serve) -> None:
    wire = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nX-Sum: 1\r\n\r\n"
    with RawClient(serve(wire)) as client:
        assert client.read_response().trailers == [("X-Sum", "1")]


def test_a_truncated_body_is_an_error(serve: Serve) -> None:
    with RawClient(serve(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nab")) as client, pytest.raises(EOFError):
        client.read_response()


def test_silence_is_bounded() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        RawClient(listener.getsockname(), timeout=0.1) as client,
    ):
        client.assert_silent(0.05)
        with pytest.raises(TimeoutError):
            client.read_response()
        with pytest.raises(TooLate, match="did not close"):
            client.read_until_close()
