import json
import re
from base64 import b64decode
from collections.abc import Sequence
from typing import Any

import pytest

from asgibus.layers.streams.offsets import BEGINNING, Offset
from asgibus.layers.streams.page import Page, StreamState
from asgibus.protocol import durable_streams as durable
from asgibus.protocol.durable_streams import Answer, Batch, ReadRequest, Refused
from asgibus.protocol.header_lines import split_lines

OPEN, ENDED, FAILED = StreamState.OPEN, StreamState.ENDED, StreamState.FAILED
EPOCH = 1764541234567
CURSOR = 1000


def at(number: int) -> Offset:
    return Offset(EPOCH, number)


def text(number: int) -> str:
    return f"000{EPOCH}-{number:016d}"


def page(
    items: Sequence[Any] = (),
    *,
    after: int = 0,
    first: int = 1,
    last: int | None = None,
    state: StreamState = OPEN,
    error: str = "",
    content_type: str = "application/json",
    reset: bool = False,
) -> Page:
    until = after + len(items)
    return Page(
        [(at(number), item) for number, item in enumerate(items, after + 1)],
        at(first),
        at(until if last is None else last),
        state,
        error,
        reset=reset,
        next=at(until),
        content_type=content_type,
    )


def headers(answer: Answer) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in split_lines(answer.headers)}


def request(query: str = "", method: str = "GET", **fields: str) -> ReadRequest:
    lines = [(name.replace("_", "-").encode(), value.encode()) for name, value in fields.items()]
    return durable.parse("log", method, durable.parse_query(query.encode()), lines)


def respond(found: Page, query: str = "", **fields: str) -> Answer | None:
    asked = request(query, **fields)
    batch = durable.tail_of(found) if asked.from_now else durable.batch_of(found, asked.after)
    return durable.respond(asked, batch, CURSOR)


def answer(found: Page, query: str = "", **fields: str) -> Answer:
    answered = respond(found, query, **fields)
    assert answered is not None
    return answered


# Requests.


@pytest.mark.parametrize("query", ["", "offset=-1", "offset=-1&foo=bar"])
def test_reading_from_the_beginning(query: str) -> None:
    assert request(query) == ReadRequest("log", BEGINNING)


def test_offsets_are_read_in_the_form_of_the_protocol_and_of_apps() -> None:
    assert request(f"offset={text(7)}").after == request(f"offset={EPOCH}-7").after == at(7)
    assert durable.show_offset(at(7)) == text(7)


def test_the_order_of_offsets_is_that_of_their_texts() -> None:
    offsets = [at(0), at(9), at(10), at(10**12), Offset(EPOCH + 1, 1)]
    assert sorted(map(durable.show_offset, offsets)) == [*map(durable.show_offset, offsets)]


@pytest.mark.parametrize(
    "query",
    [
        "offset=",
        "offset=0,1",
        "offset=0%201",
        "offset=1-2%0a",
        "offset=1-2%00",
        "offset=../1-2",
        "offset=1-" + "9" * 20,
        "offset=٣-٤",
        "offset=a&offset=b",
        "live=long-poll",
        "live=sse",
        "live=&offset=-1",
        "live=true&offset=-1",
        "live=sse&live=sse&offset=-1",
        "&".join(f"a{number}=1" for number in range(100)),
    ],
)
def test_other_queries_are_refused(query: str) -> None:
    with pytest.raises(Refused) as raised:
        request(query)
    refused = raised.value.answer
    assert refused.status == 400
    assert refused.body.endswith(b".\n")
    assert headers(refused)["x-content-type-options"] == "nosniff"
    assert headers(refused)["access-control-allow-origin"] == "*"
    assert headers(refused)["cache-control"] == "no-store"


def test_live_requests() -> None:
    poll = request(f"offset={text(3)}&live=long-poll&cursor=17")
    assert (poll.after, poll.live, poll.cursor) == (at(3), durable.LONG_POLL, 17)
    events = request("offset=now&live=sse&cursor=x")
    assert (events.after, events.from_now, events.live, events.cursor) == (BEGINNING, True, durable.SSE, None)


def test_head_ignores_the_query() -> None:
    assert request("offset=x", method="HEAD").head


@pytest.mark.parametrize("name", ["", "a/b", "..%2f", "é", "n" * 101, "group:room"])
def test_there_is_no_stream_with_another_name(name: str) -> None:
    with pytest.raises(Refused) as raised:
        durable.find_name(name)
    assert raised.value.answer.status == 404


def test_what_belongs_to_reading() -> None:
    reads = [(b"access-control-request-method", b"GET")]
    writes = [(b"access-control-request-method", b"PUT")]
    assert durable.is_for_reading("GET", [])
    assert durable.is_for_reading("HEAD", [])
    assert durable.is_for_reading("OPTIONS", reads)
    assert not any(durable.is_for_reading(method, reads) for method in ("PUT", "POST", "DELETE"))
    assert not durable.is_for_reading("OPTIONS", writes)
    assert not durable.is_for_reading("OPTIONS", [])
    preflight = durable.preflight()
    assert preflight.status == 204
    assert headers(preflight)["access-control-allow-headers"] == "*"


def test_cursors_never_go_backwards() -> None:
    now = durable.CURSOR_EPOCH + 1000 * durable.CURSOR_SECONDS + 1.5
    assert durable.next_cursor(now, None, 0.5) == durable.next_cursor(now, 999, 0.5) == 1000
    assert durable.next_cursor(now, 1000, 0.0) == 1001
    assert durable.next_cursor(now, 5000, 0.999) == 5180
    assert durable.next_cursor(0.0, None, 0.5) == 0


# What is there.


def test_a_stream_of_json() -> None:
    found = answer(page([{"n": 1}, [2], "three", b"four", 5.5, None]))
    assert found.status == 200
    assert json.loads(found.body) == [{"n": 1}, [2], "three", "Zm91cg==", 5.5, None]
    fields = headers(found)
    assert fields["content-type"] == "application/json"
    assert fields["stream-next-offset"] == text(6)
    assert fields["stream-up-to-date"] == "true"
    assert "stream-closed" not in fields
    assert "stream-cursor" not in fields
    assert fields["cross-origin-resource-policy"] == "cross-origin"
    assert "sandbox" in fields["content-security-policy"]


def test_a_stream_of_bytes() -> None:
    found = answer(page(["ä", b"\0\xff", {"n": 1}, {None: 1}, "\ud800"], content_type="application/octet-stream"))
    assert found.body == b'\xc3\xa4\0\xff{"n":1}null?'
    assert headers(found)["content-type"] == "application/octet-stream"


def test_a_content_type_that_is_none_ends_no_header() -> None:
    assert headers(answer(page([1], content_type="text/html\r\nset-cookie: a=b")))["content-type"] == "application/json"
    assert headers(answer(page(["a"], content_type="text/plain; charset=utf-8")))["content-type"].endswith("utf-8")


def test_a_page_of_several() -> None:
    found = answer(page(["a", "b"], last=9, state=ENDED))
    assert headers(found)["stream-next-offset"] == text(2)
    assert "stream-up-to-date" not in headers(found)
    assert "stream-closed" not in headers(found)


def test_an_empty_stream() -> None:
    found = answer(page())
    assert (found.status, found.body) == (200, b"[]")
    assert headers(found)["stream-next-offset"] == text(0)
    assert headers(found)["stream-up-to-date"] == "true"
    assert answer(page(content_type="text/plain")).body == b""


def test_the_end() -> None:
    for found in (answer(page(["a"], state=ENDED)), answer(page(after=1, state=ENDED), f"offset={text(1)}")):
        assert found.status == 200
        assert headers(found)["stream-closed"] == headers(found)["stream-up-to-date"] == "true"


def test_a_stream_that_has_failed_is_never_closed() -> None:
    found = answer(page(["a"], state=FAILED, error="ValueError"))
    assert found.status == 200
    assert headers(found)["stream-error"] == "ValueError"
    assert "stream-closed" not in headers(found)
    for query in (f"offset={text(1)}", f"offset={text(1)}&live=long-poll", f"offset={text(1)}&live=sse", "offset=now"):
        found = answer(page(after=1, state=FAILED, error="the writer is gone\r\nx: ö"), query)
        assert found.status == 424
        assert headers(found)["stream-error"] == "the writer is gone??x: ?"
        assert headers(found)["stream-next-offset"] == text(1)


def test_from_now_on() -> None:
    found = answer(page(["a", "b"], last=9), "offset=now")
    assert (found.status, found.body) == (200, b"[]")
    assert headers(found)["stream-next-offset"] == text(9)
    assert headers(found)["stream-up-to-date"] == "true"
    assert headers(found)["cache-control"] == "no-store"
    assert "etag" not in headers(found)


def test_history_that_is_gone() -> None:
    found = answer(page(["d"], after=3, first=4, reset=True))
    assert json.loads(found.body) == ["d"]
    assert headers(found)["stream-earliest-offset"] == text(3)
    gone = durable.gone(durable.start_of(page(after=3, first=4, reset=True)))
    assert gone.status == 410
    assert headers(gone)["stream-earliest-offset"] == text(3)


def test_metadata() -> None:
    found = durable.metadata(durable.tail_of(page(after=3, last=9, first=4, state=ENDED, content_type="text/plain")))
    assert (found.status, found.body) == (200, b"")
    fields = headers(found)
    assert fields["content-type"] == "text/plain"
    assert fields["stream-next-offset"] == text(9)
    assert fields["stream-closed"] == "true"
    assert fields["cache-control"] == "no-store"
    assert fields["stream-earliest-offset"] == text(3)
    assert "stream-closed" not in headers(durable.metadata(durable.tail_of(page())))
    failed = headers(durable.metadata(durable.tail_of(page(state=FAILED, error="KeyError"))))
    assert failed["stream-error"] == "KeyError"
    assert "stream-closed" not in failed


# Caching.


def test_an_entity_tag_changes_with_the_data_and_with_the_end() -> None:
    found = [
        answer(page(["a"])),
        answer(page(["a", "b"])),
        answer(page(["a"], state=ENDED)),
        answer(page(["a"], state=FAILED)),
        answer(page(["a"], after=1), f"offset={text(1)}"),
    ]
    tags = [headers(each)["etag"] for each in found]
    assert len({*tags}) == len(tags)
    assert all(re.fullmatch(r'"[^"]+"', tag) for tag in tags)


def test_a_known_entity_tag_is_answered_with_304() -> None:
    tag = headers(answer(page(["a"])))["etag"]
    for known in (tag, f'"other", W/{tag}', "*"):
        found = answer(page(["a"]), if_none_match=known)
        assert (found.status, found.body) == (304, b"")
        assert headers(found)["etag"] == tag
    assert answer(page(["a"]), if_none_match='"other"').status == 200
    assert answer(page(["a", "b"]), if_none_match=tag).status == 200
    assert answer(page(["a"]), "offset=-1&live=long-poll", if_none_match=tag).status == 200


def test_only_what_cannot_change_is_kept_by_caches() -> None:
    def cached(found: Page, query: str = "") -> str:
        return headers(answer(found, query))["cache-control"]

    assert "max-age=60" in cached(page(["b"], after=1, last=9), f"offset={text(1)}")
    assert cached(page(["a"], last=9)) == "private, no-cache"
    assert cached(page(["b"], after=1), f"offset={text(1)}") == "private, no-cache"


# Long polls.


def test_a_long_poll_waits_at_the_end_of_an_open_stream() -> None:
    assert respond(page(after=3), f"offset={text(3)}&live=long-poll") is None
    assert respond(page(["a"]), "offset=now&live=long-poll") is None


def test_a_long_poll_with_something_to_read() -> None:
    found = answer(page(["a"]), "offset=-1&live=long-poll")
    assert (found.status, found.body) == (200, b'["a"]')
    assert headers(found)["stream-cursor"] == str(CURSOR)
    assert headers(found)["stream-up-to-date"] == "true"


def test_a_long_poll_at_the_end() -> None:
    for query in (f"offset={text(1)}&live=long-poll", "offset=now&live=long-poll"):
        found = answer(page(after=1, state=ENDED), query)
        assert (found.status, found.body) == (204, b"")
        assert headers(found)["stream-closed"] == headers(found)["stream-up-to-date"] == "true"
        assert "stream-cursor" not in headers(found)


def test_a_long_poll_for_which_nothing_came() -> None:
    found = durable.poll_timeout(durable.tail_of(page(after=3)), CURSOR)
    assert (found.status, found.body) == (204, b"")
    fields = headers(found)
    assert (fields["stream-next-offset"], fields["stream-cursor"]) == (text(3), str(CURSOR))
    assert fields["stream-up-to-date"] == "true"
    assert fields["cache-control"] == "no-store"


# Server-sent events.


def sent(batch: Batch) -> list[tuple[str, str]]:
    """Return the events of a batch, read as the HTML standard has it."""
    found = (durable.data_event(batch) + durable.control_event(batch, CURSOR)).decode()
    events = []
    for block in found.split("\n\n")[:-1]:
        lines = [line.partition(":")[::2] for line in re.split(r"\r\n|\r|\n", block)]
        data = "\n".join([value.removeprefix(" ") for name, value in lines if name == "data"])
        [kind] = [value.strip() for name, value in lines if name == "event"]
        events.append((kind, data))
    return events


def batch(items: Sequence[Any], content_type: str = "application/json", **fields: Any) -> Batch:
    return durable.batch_of(page(items, content_type=content_type, **fields), BEGINNING)


def test_server_sent_events_are_not_a_whole_answer() -> None:
    assert respond(page(["a"]), "offset=-1&live=sse") is None
    assert respond(page(state=ENDED), "offset=-1&live=sse") is None


def test_the_head_of_server_sent_events() -> None:
    binary = headers(durable.event_stream_head(batch([], "image/png"), request()))
    assert binary["content-type"] == "text/event-stream"
    assert binary["stream-sse-data-encoding"] == "base64"
    assert "no-cache" in binary["cache-control"]
    for content_type in ("text/plain", "application/json", "application/json; charset=utf-8"):
        head = headers(durable.event_stream_head(batch([], content_type), request()))
        assert "stream-sse-data-encoding" not in head
    gone = headers(durable.event_stream_head(batch(["d"], after=3, first=4), request()))
    assert gone["stream-earliest-offset"] == text(3)


def test_events_of_json() -> None:
    (kind, data), (last, control) = sent(batch([{"n": "a\nb"}, 2]))
    assert (kind, json.loads(data)) == ("data", [{"n": "a\nb"}, 2])
    assert last == "control"
    assert json.loads(control) == {"streamNextOffset": text(2), "streamCursor": str(CURSOR), "upToDate": True}


@pytest.mark.parametrize("item", ["a", " a\n  b\n", "a\n\nevent: control\ndata: {}\n\n", ":c", "", "\n"])
def test_events_of_text(item: str) -> None:
    assert sent(batch([item], "text/plain"))[0] == ("data", item)


def test_line_ends_in_text_end_no_event() -> None:
    attack = "a\r\n\r\nevent: control\r\rdata: {}\r\n"
    (kind, data), (last, _) = sent(batch([attack], "text/plain"))
    assert (kind, last) == ("data", "control")
    assert data == attack.replace("\r\n", "\n").replace("\r", "\n")


def test_events_of_bytes() -> None:
    (_, data), _ = sent(batch([b"\0\n", b"\r\xff"], "application/octet-stream"))
    assert b64decode(data) == b"\0\n\r\xff"


def test_an_event_without_items() -> None:
    [(kind, control)] = sent(batch([]))
    assert kind == "control"
    assert json.loads(control)["upToDate"] is True


def test_the_event_of_the_end() -> None:
    control = json.loads(sent(batch(["a"], state=ENDED))[1][1])
    assert control == {"streamNextOffset": text(1), "streamClosed": True, "upToDate": True}


def test_a_failure_is_no_end_in_events() -> None:
    control = json.loads(sent(batch(["a"], state=FAILED))[1][1])
    assert "streamClosed" not in control


def test_events_of_a_page_of_several() -> None:
    control = json.loads(sent(batch(["a"], last=9))[1][1])
    assert control == {"streamNextOffset": text(1), "streamCursor": str(CURSOR)}
