"""Event streams: whole events for the client, and the last event id for a further run."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgibus.protocol.event_stream import (
    LONGEST_EVENT,
    LONGEST_ID,
    RETRY_MS,
    EventStream,
    is_event_stream,
    retry_line,
)
from support.event_source import interpret

LINES = (b"", b"", b"data: a", b"data:b", b"data", b"data:  two spaces", b"id: 1", b"id:2", b"id", b"id: \xff")
OTHER_LINES = (b": comment", b":", b"event: kind", b"retry: 70", b"retry: soon", b"other: 1", b"ident: 3", b"id: nul\0")
BOM = b"\xef\xbb\xbf"

line_ends = st.sampled_from([b"\n", b"\r", b"\r\n"])
bodies = st.builds(
    lambda mark, lines, last: mark + b"".join(line + end for line, end in lines) + last,
    st.sampled_from([b"", BOM, BOM[:2]]),
    st.lists(st.tuples(st.sampled_from(LINES + OTHER_LINES), line_ends), max_size=30),
    st.sampled_from([b"", b"da", b"id: 9"]),
)


def cut(body: bytes, places: list[int]) -> list[bytes]:
    """Return the body in parts, which end at these places."""
    ends = sorted({place % (len(body) + 1) for place in places} | {len(body)})
    return [body[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def feed(stream: EventStream, *parts: bytes) -> bytes:
    return b"".join(stream.feed(part) for part in parts)


@given(bodies, st.lists(st.integers(0, 10_000), max_size=20))
def test_any_parts_give_the_same(body: bytes, places: list[int]) -> None:
    whole, parted = EventStream(), EventStream()
    passed = whole.feed(body)
    assert feed(parted, *cut(body, places)) == passed
    assert (parted.last_id, parted.obstacle, parted.retry, parted.progressed) == (
        *(whole.last_id, whole.obstacle, whole.retry, whole.progressed),
    )
    rest = whole.end()
    assert passed + rest == body
    assert parted.end() == rest


@given(bodies, st.lists(st.integers(0, 10_000), max_size=20))
def test_all_whole_events_are_passed_on_and_nothing_of_another(body: bytes, places: list[int]) -> None:
    stream = EventStream()
    sent = passed = b""
    for part in cut(body, places):
        sent += part
        passed += stream.feed(part)
        got = interpret(passed)
        assert got.events == interpret(sent).events
        assert stream.last_id.decode("utf-8", "replace") == got.last_event_id
        probed = interpret(passed + b"data: probe\n\n").events
        assert [event[:2] for event in probed[len(got.events) :]] == [("message", "probe")]


@given(
    st.lists(
        st.tuples(st.lists(st.sampled_from([b"data: x", b": ping", b"event"]), max_size=3), line_ends), max_size=8
    ),
    st.sampled_from([b"", BOM]),
    st.lists(st.integers(0, 10_000), max_size=5),
    st.integers(0, 10_000),
)
def test_a_further_run_continues(
    events: list[tuple[list[bytes], bytes]], mark: bytes, places: list[int], end: int
) -> None:
    """An app that honors Last-Event-ID, and a run that ends anywhere: every event once."""
    blocks = [
        end.join([*lines, b"id: %d" % number, b"data: %d" % number, b"", b""])
        for number, (lines, end) in enumerate(events, 1)
    ]
    body = mark + b"".join(blocks)
    stream = EventStream()
    passed = feed(stream, *cut(body[: end % (len(body) + 1)], places))
    assert stream.obstacle == ""
    stream.restart()
    passed += feed(stream, *cut(mark + b"".join(blocks[int(stream.last_id or 0) :]), places))
    assert [event.last_event_id for event in interpret(passed).events] == [str(n + 1) for n in range(len(blocks))]


def test_a_comment_between_events_is_passed_on_at_once() -> None:
    stream = EventStream()
    assert stream.feed(b": ping\n") == b": ping\n", "it keeps the connection alive"
    assert stream.feed(b"data: 1\n: ping\n") == b""
    assert stream.feed(b"\n: ping\r") == b"data: 1\n: ping\n\n: ping\r"
    assert stream.feed(b"\n") == b"\n"


def test_the_last_id_counts_when_its_event_is_whole() -> None:
    stream = EventStream(b"5")
    stream.feed(b"id: 6\ndata: x\n")
    assert stream.last_id == b"5"
    stream.feed(b"\n")
    assert stream.last_id == b"6"
    stream.feed(b"id: 7\n")
    stream.restart()
    stream.feed(b"data: y\n\n")
    assert stream.last_id == b"6", "what the last run did not finish is forgotten"
    stream.feed(b"id\n\n")
    assert stream.last_id == b""


def test_obstacles_for_a_further_run() -> None:
    stream = EventStream()
    stream.feed(b"retry: 10\n\n: hello\n\n")
    assert stream.obstacle == "", "the client has got no event yet"
    stream.feed(b"data: 1\n\n")
    assert stream.obstacle == "its events have no id"
    stream.feed(b"id: 1\ndata: 1\n\n")
    assert stream.obstacle == ""
    stream.feed(b"id: %b\n\n" % (b"x" * (LONGEST_ID + 1)))
    assert stream.obstacle == "its events have no id", "no header can be as long"


def test_the_id_of_the_request_counts_until_there_is_another() -> None:
    stream = EventStream(b"41")
    stream.feed(b"data: 1\n\n")
    assert stream.obstacle == ""
    headers = ((b"host", b"a"), (b"last-event-id", b"old"), (b"accept", b"*/*"))
    assert stream.headers(headers) == ((b"host", b"a"), (b"accept", b"*/*"), (b"last-event-id", b"41"))
    stream.feed(b"id\n\n")
    assert stream.headers(headers) == ((b"host", b"a"), (b"accept", b"*/*"))


@pytest.mark.parametrize("size", [100, 1000, 50_000, 1_000_000])
def test_a_long_event_is_not_held(size: int) -> None:
    body = b"id: 1\ndata: small\n\nid: 2\ndata: %b\n\n" % (b"x" * 2 * LONGEST_EVENT)
    stream = EventStream()
    passed = 0
    for start in range(0, len(body), size):
        part = body[start : start + size]
        passed += len(stream.feed(part))
        assert start + len(part) - passed <= LONGEST_EVENT
        if start + len(part) < len(body):
            expected = "" if passed < 100 else "an event of more than 64 KiB was cut off"
            assert stream.obstacle == expected
    assert stream.end() == b""
    assert (passed, stream.last_id, stream.obstacle) == (len(body), b"2", "")
    stream.feed(b"id: 3\ndata: %b" % (b"y" * LONGEST_EVENT))
    assert stream.obstacle


def test_lines_of_an_event_that_is_not_held_are_read() -> None:
    stream = EventStream()
    passed = feed(stream, b"data: " + b"x" * LONGEST_EVENT, b"x" * LONGEST_EVENT, b"\nid: 1", b"2\n", b"\ndata: next\n")
    assert passed.endswith(b"x\nid: 12\n\n")
    assert (stream.last_id, stream.obstacle) == (b"12", "")


def test_broadcasts_between_the_events_of_a_run() -> None:
    stream, others = EventStream(), EventStream()
    others.feed(b"id: 20\ndata: all\n\n")
    stream.feed(b"id: 1\ndata: x\n\ndata: y")
    stream.add(others)
    assert stream.last_id == b"20"
    stream.feed(b"\n\n")
    assert stream.last_id == b"20"
    stream.feed(b"id: 2\n")
    stream.add(others)
    stream.feed(b"\n")
    assert stream.last_id == b"2"


@given(st.floats(0, 1), bodies)
def test_the_end_has_the_client_come_back_and_adds_no_event(chance: float, body: bytes) -> None:
    stream = EventStream()
    passed = stream.feed(body)
    after = interpret(passed + stream.farewell(chance))
    assert after.events == interpret(passed).events
    set_by_app = interpret(body).retry
    mean = RETRY_MS if set_by_app is None else set_by_app
    assert after.retry is not None
    assert mean * 0.5 - 1 <= after.retry <= mean * 1.5 + 1


@pytest.mark.parametrize("last", [b"x", b"x\n", b"x\r", b"x\r\n", b"x\nid: 7"])
def test_the_end_behind_an_event_that_was_cut_off(last: bytes) -> None:
    stream = EventStream()
    passed = stream.feed(b"data: " + b"x" * LONGEST_EVENT + last)
    assert passed
    assert interpret(passed + stream.farewell(0.5)) == ([], "", RETRY_MS)


def test_a_retry_line() -> None:
    assert retry_line(0.0, 1000) == b"retry: 500\n"


@pytest.mark.parametrize(
    ("status", "headers", "expected"),
    [
        (200, b"content-type: text/event-stream\r\n", True),
        (200, b"content-type: Text/Event-Stream; charset=utf-8\r\n", True),
        (200, b"content-type: text/event-stream\r\ncontent-encoding: identity\r\n", True),
        (200, b"content-type: text/event-stream\r\ncontent-encoding: gzip\r\n", False),
        (200, b"content-type: text/event-stream\r\ncontent-length: 5\r\n", False),
        (206, b"content-type: text/event-stream\r\n", False),
        (200, b"content-type: text/plain\r\n", False),
        (200, b"", False),
    ],
)
def test_responses_that_are_event_streams(status: int, headers: bytes, expected: bool) -> None:
    assert is_event_stream(status, headers) is expected
