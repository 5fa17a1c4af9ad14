import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgibus.interface_server.http.response import Framing, Head, StandardHeaders, plain_response, response_head
from asgibus.protocol.header_lines import make_lines

PLAIN = StandardHeaders(server=False, date=False)


def head(
    *headers: tuple[bytes, bytes], status: int = 200, version: str = "1.1", method: str = "GET", **options: bool | int
) -> Head:
    keep_alive = bool(options.pop("keep_alive", True))
    return response_head(
        status,
        make_lines(headers, "the test"),
        PLAIN,
        http_version=version,
        method=method,
        keep_alive=keep_alive,
        **options,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    ("made", "framing", "length", "close"),
    [
        (head(), Framing.CHUNKED, 0, False),
        (head(whole=3), Framing.LENGTH, 3, False),
        (head(whole=0), Framing.LENGTH, 0, False),
        (head((b"Content-Length", b"7")), Framing.LENGTH, 7, False),
        (head((b"content-length", b"7"), whole=3), Framing.LENGTH, 7, False),
        *[
            (head((b"content-length", value), whole=3), Framing.LENGTH, 3, False)
            for value in (b"ten", b"-1", b"1_0", b"", b"9" * 19, b"9" * 5000)
        ],
        (head((b"content-length", b"3"), (b"Content-Length", b"300")), Framing.LENGTH, 3, False),
        (head(whole=3, trailers=True), Framing.CHUNKED, 0, False),
        (head(version="1.0"), Framing.CLOSE, 0, True),
        (head(version="1.0", whole=3), Framing.LENGTH, 3, False),
        (head(method="HEAD"), Framing.NONE, 0, False),
        (head(status=204), Framing.NONE, 0, False),
        (head((b"content-length", b"7"), status=304), Framing.NONE, 7, False),
        (head(keep_alive=False), Framing.CHUNKED, 0, True),
        (head((b"connection", b"x, Close")), Framing.CHUNKED, 0, True),
        (head((b"connection", b"closed")), Framing.CHUNKED, 0, False),
    ],
)
def test_the_end_of_a_body_is_marked(made: Head, framing: Framing, length: int, close: bool) -> None:
    assert (made.framing, made.length, made.close) == (framing, length, close)
    lines = made.data.split(b"\r\n")
    assert [line for line in lines if line.startswith(b"content-length")] == (
        [b"content-length: %d" % length] if framing is Framing.LENGTH or length else []
    )
    assert (b"transfer-encoding: chunked" in lines) == (framing is Framing.CHUNKED)
    assert lines[-2:] == [b"", b""]


def test_the_head_on_the_wire() -> None:
    made = head((b"X-A", b"1"), (b"x-a", b"2"), (b"transfer-encoding", b"gzip"), status=404, whole=2)
    assert made.data == b"HTTP/1.1 404 Not Found\r\nx-a: 1\r\nx-a: 2\r\ncontent-length: 2\r\n\r\n"


def test_a_204_has_no_length() -> None:
    assert head((b"content-length", b"0"), status=204).data == b"HTTP/1.1 204 No Content\r\n\r\n"


def test_keep_alive_is_sent_to_http_1_0_only() -> None:
    assert b"connection: keep-alive\r\n" in head(version="1.0", whole=0).data
    assert b"connection" not in head(whole=0).data
    assert b"connection: close\r\n" in head(whole=0, keep_alive=False).data
    assert b"connection" not in head(version="1.0", whole=0, keep_alive=False).data


def test_headers_of_the_app_replace_standard_headers() -> None:
    standard = StandardHeaders(server=True, date=True)
    assert standard.get(own_server=False, own_date=True) == b"server: asgibus\r\n"
    assert standard.get(own_server=True, own_date=False).startswith(b"date: ")
    assert standard.get(own_server=True, own_date=True) == b""
    assert PLAIN.get(own_server=False, own_date=False) == b""


def test_an_error_response_of_the_server() -> None:
    whole = plain_response(503, "Later.", PLAIN)
    assert whole.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
    assert whole.endswith(b"retry-after: 1\r\ncontent-length: 7\r\nconnection: close\r\n\r\nLater.\n")
    assert plain_response(503, "Later.", PLAIN, head_only=True) == whole.removesuffix(b"Later.\n")


NAMES = st.sampled_from((b"Content-Length", b"transfer-encoding", b"connection", b"server", b"date", b"trailer", b"x"))
VALUES = st.sampled_from((b"3", b"5", b"x", b"", b"chunked", b"close, x", b"keep-alive", b"content-length: 9"))


@given(st.lists(st.tuples(NAMES, VALUES), max_size=6), st.sampled_from((200, 204, 304)), st.none() | st.just(3))
def test_no_headers_of_an_app_leave_the_end_of_a_response_in_doubt(
    headers: list[tuple[bytes, bytes]], status: int, whole: int | None
) -> None:
    made = response_head(
        status,
        make_lines(headers, "the test"),
        StandardHeaders(server=True, date=True),
        http_version="1.1",
        method="GET",
        keep_alive=True,
        whole=whole,
    )
    assert made.data.count(b"\r\n\r\n") == 1
    lines = [line.partition(b": ") for line in made.data.removesuffix(b"\r\n\r\n").split(b"\r\n")[1:]]
    values: dict[bytes, list[bytes]] = {}
    for name, _, value in lines:
        values.setdefault(name, []).append(value)
    lengths, codings = values.get(b"content-length", []), values.get(b"transfer-encoding", [])
    assert len(lengths) + len(codings) <= 1, "RFC 9112, section 6.2"
    assert lengths in ([], [b"%d" % made.length])
    assert codings == [b"chunked"] * (made.framing is Framing.CHUNKED)
    assert not (status == 204 and lengths), "RFC 9110, section 8.6"
    assert (b"close" in b", ".join(values.get(b"connection", [])).split(b", ")) == made.close
