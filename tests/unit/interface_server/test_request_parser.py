"""However the bytes of a client are cut, the same requests come out."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from asgibus.interface_server.http.request import HEAD_TOO_LARGE, Request, RequestParser

PIPELINE = (
    b"GET /1?q HTTP/1.1\r\nHost: a\r\nX-Long: one two  \r\n\r\n"
    b"\r\nPOST /2 HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello"
    b"POST /3 HTTP/1.1\r\nHost: a\r\nUpgrade: h2c\r\nConnection: Upgrade\r\nContent-Length: 5\r\n\r\nGET /"
    b"POST /4 HTTP/1.1\r\nHost: a\r\nUpgrade: h2c\r\nConnection: Upgrade\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"3;x=y\r\nabc\r\n2\r\nde\r\n0\r\nTrailer: t\r\n\r\n"
    b"GET /5 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
)
EXPECTED = [
    ("GET", b"/1?q", b"", 2),
    ("POST", b"/2", b"hello", 2),
    ("POST", b"/3", b"GET /", 4),
    ("POST", b"/4", b"abcde", 4),
    ("GET", b"/5", b"", 2),
]


def parser(max_head_size: int = 65_536) -> tuple[RequestParser, list[Request]]:
    requests: list[Request] = []
    return RequestParser((None, None, "http", {}), max_head_size, requests.append), requests


@given(cuts=st.sets(st.integers(1, len(PIPELINE) - 1)))
def test_pieces_change_nothing(cuts: set[int]) -> None:
    reading, requests = parser()
    places = [0, *sorted(cuts), len(PIPELINE)]
    for start, end in itertools.pairwise(places):
        assert reading.feed(PIPELINE[start:end]) is None
    parsed = [(each.method, each.target, b"".join(each.parts), len(each.headers)) for each in requests]
    assert parsed == EXPECTED
    assert all(each.complete and each.error is None for each in requests)
    assert [each.keep_alive for each in requests] == [True] * 4 + [False]
    assert reading.request is None


def test_a_large_head_behind_another_request_is_rejected() -> None:
    reading, requests = parser(max_head_size=100)
    assert reading.feed(b"GET /1 HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 100) is None
    assert reading.feed(b"\r\n\r\nGET /3 HTTP/1.1\r\nHost: a\r\n\r\n") is None
    assert [each.error for each in requests] == [None, HEAD_TOO_LARGE, None]


def test_empty_lines_before_a_request_count_as_part_of_its_head() -> None:
    reading, requests = parser(max_head_size=100)
    for _ in range(20):
        assert reading.feed(b"\r\n" * 25) is None
        assert reading.feed(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n") is None
    assert [each.error for each in requests] == [None] * 20
    assert reading.feed(b"\r\n" * 50) is None
    assert reading.feed(b"\r\n") is HEAD_TOO_LARGE
    assert reading.request is not None


@given(cuts=st.sets(st.integers(1, 150)))
def test_bytes_after_a_websocket_handshake_are_the_tail(cuts: set[int]) -> None:
    wire = (
        b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nGET / HTTP/1.1\r\n\x00\xff"
        + b"x" * 90
    )
    reading, requests = parser()
    places = [0, *sorted(cuts), len(wire)]
    for start, end in itertools.pairwise(places):
        assert reading.feed(wire[start:end]) is None
    assert [each.kind for each in requests] == ["websocket"]
    assert reading.tail == wire.partition(b"\r\n\r\n")[2]


@given(
    st.binary(max_size=300),
    st.sampled_from([b"", b"GET / HTTP/1.1\r\n", b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"]),
)
def test_no_input_raises(noise: bytes, before: bytes) -> None:
    reading, _ = parser()
    refusal = reading.feed(before + noise)
    assert refusal is None or (refusal.status in {400, 501} and reading.request is not None)


@given(cut=st.integers(1, 25))
def test_rtsp_is_recognised_in_pieces(cut: int) -> None:
    wire = b"GET /a RTSP/1.0\r\nCSeq: 1\r\n\r\n"
    reading, requests = parser()
    for piece in (wire[:cut], wire[cut:]):
        assert reading.feed(piece) is None
    assert requests[0].error is not None
    assert requests[0].error.status == 505


def test_the_head_is_bounded_in_every_state() -> None:
    for before in (b"", b"GET /", b"GET / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nA", b"GET / HTTP/1.1\r\nA: "):
        reading, _ = parser(max_head_size=1000)
        assert reading.feed(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" + before) is None
        refusals = [reading.feed(b"x" * 100) for _ in range(11)]
        assert refusals[-1] is not None, before
        assert refusals[-1].status in {431, 400, 501}


def test_a_long_body_is_no_head() -> None:
    reading, requests = parser(max_head_size=1000)
    assert reading.feed(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n") is None
    for _ in range(100):
        assert reading.feed(b"64\r\n" + b"x" * 100 + b"\r\n") is None
        assert reading.feed(b"1;" + b"y" * 500 + b"\r\n") is None
        assert reading.feed(b"z\r\n") is None
    assert sum(map(len, requests[0].parts)) == reading.body_bytes == 10_100


def test_the_size_of_a_head_is_counted_for_each_request_alone() -> None:
    reading, requests = parser(max_head_size=100)
    for _ in range(10):
        assert reading.feed(b"GET / HTTP/1.1\r\nHost: a\r\nX-One: 1\r\n") is None
        assert reading.feed(b"X-Two: 2\r\n\r\n") is None
    assert len(requests) == 10
