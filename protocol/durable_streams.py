"""The read half of the Durable Streams protocol: what a request asks for, and what a page of a stream answers. No IO.

`parse` makes a `ReadRequest` of a request. The endpoint then reads a page of the stream, makes a `Batch` of it, and
asks `respond` for a whole response: there is none if a long poll waits, or for server-sent events, which are made by
`event_stream_head`, `data_event` and `control_event`.

The numbers of sections are those of the protocol, version 1.0. Two headers are extensions of it: `stream-error` is the
reason why a stream has failed, and `stream-earliest-offset` the offset from which a stream can be read, if its
beginning is not kept any more.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qsl

from msgspec import json

from asgibus.layers.names import require_stream
from asgibus.layers.settings import is_content_type
from asgibus.layers.streams.offsets import BEGINNING, Offset
from asgibus.layers.streams.page import Page, StreamState
from asgibus.protocol.header_lines import make_lines

FROM_BEGINNING: Final = "-1"
FROM_NOW: Final = "now"
LONG_POLL: Final = "long-poll"
SSE: Final = "sse"
DEFAULT_CONTENT_TYPE: Final = "application/json"

CURSOR_SECONDS: Final = 20  # section 10.1, as the next two
CURSOR_EPOCH: Final = 1728432000  # 9 October 2024, UTC
CURSOR_JITTER: Final = 3600 // CURSOR_SECONDS

_OFFSET: Final = re.compile(r"([0-9]{1,16})-([0-9]{1,16})\Z", re.ASCII)
_CURSOR: Final = re.compile(r"[0-9]{1,15}\Z", re.ASCII)
_LINE_ENDS: Final = re.compile(r"\r\n|\r|\n")
_NOT_SHOWN: Final = re.compile(r"[^ -~]")  # in a header
_PARAMETERS: Final = ("offset", "live", "cursor", "expires", "signature")
_MOST_PARAMETERS: Final = 64
_READ_METHODS: Final = (b"GET", b"HEAD")

# On every answer. A browser lets scripts of any origin read it, as a signed name is all that protects a stream, and
# cookies play no part. A stream of HTML must not run scripts in the origin of the app, if somebody opens its address.
_COMMON: Final = (
    (b"access-control-allow-origin", b"*"),
    (
        b"access-control-expose-headers",
        (
            b"etag, stream-next-offset, stream-cursor, stream-up-to-date, stream-closed, stream-error, "
            b"stream-earliest-offset, stream-sse-data-encoding"
        ),
    ),
    (b"cross-origin-resource-policy", b"cross-origin"),
    (b"content-security-policy", b"sandbox; default-src 'none'"),
    (b"x-content-type-options", b"nosniff"),
)
_PREFLIGHT: Final = (
    (b"access-control-allow-origin", b"*"),
    (b"access-control-allow-methods", b"GET, HEAD"),
    (b"access-control-allow-headers", b"*"),
    (b"access-control-max-age", b"86400"),
    (b"cross-origin-resource-policy", b"cross-origin"),
    (b"x-content-type-options", b"nosniff"),
)
_STORE_NOTHING: Final = (b"cache-control", b"no-store")
_REVALIDATE: Final = (b"cache-control", b"private, no-cache")
# The entries behind an offset never change, once more follow. The signature is part of the URL.
_CACHEABLE: Final = (b"cache-control", b"private, max-age=60, stale-while-revalidate=300")


class Answer(NamedTuple):
    """A whole response."""

    status: int
    headers: bytes
    """The headers, as lines."""
    body: bytes = b""


class Refused(Exception):
    """A request that cannot be answered. The text is for the client."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.answer = refuse(status, text)


class ReadRequest(NamedTuple):
    """A request for a stream."""

    name: str
    after: Offset = BEGINNING
    """The offset behind which to read."""
    from_now: bool = False
    """Whether to read what comes from now on, wherever that is."""
    live: str = ""
    """`LONG_POLL`, `SSE`, or empty for what is there."""
    cursor: int | None = None
    head: bool = False
    etags: str = ""
    """The header If-None-Match."""


def refuse(status: int, text: str, *more: tuple[bytes, bytes]) -> Answer:
    """Return an answer without a part of the stream.

    Args:
        status: The status.
        text: One sentence for the client.
        more: Further headers.
    """
    body = f"{text}\n".encode()
    if status == 503:
        more = (*more, (b"retry-after", b"1"))
    content = (b"content-type", b"text/plain; charset=utf-8")
    return Answer(status, make_lines((content, _STORE_NOTHING, *_COMMON, *more), "an answer"), body)


def is_for_reading(method: str, headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Return whether a request belongs to the read half of the protocol, so that the app does not get it.

    Args:
        method: The method.
        headers: The headers; those of a preflight name the method that is to follow.
    """
    if method != "OPTIONS":
        return method.encode() in _READ_METHODS
    return any(name == b"access-control-request-method" and value in _READ_METHODS for name, value in headers)


def preflight() -> Answer:
    """Return the answer to a preflight, with which browsers ask whether a script of another origin may read."""
    return Answer(204, make_lines(_PREFLIGHT, "an answer"))


def parse_query(query_string: bytes) -> dict[str, str]:
    """Return the parameters of a query. Raises Refused if one that counts is given twice."""
    try:
        pairs = parse_qsl(query_string.decode("latin-1"), keep_blank_values=True, max_num_fields=_MOST_PARAMETERS)
    except ValueError:
        raise Refused(400, "The query has too many parameters.") from None
    query: dict[str, str] = {}
    for name, value in pairs:
        if name in query and name in _PARAMETERS:
            raise Refused(400, f"The parameter {name} is given twice.")
        query[name] = value
    return query


def find_name(name: str) -> str:
    """Return the name of a stream. Raises Refused if there cannot be one of that name."""
    try:
        return require_stream(name)
    except TypeError:
        raise Refused(404, "There is no stream of this name.") from None


def parse(name: str, method: str, query: dict[str, str], headers: Iterable[tuple[bytes, bytes]]) -> ReadRequest:
    """Return what a request asks for.

    Args:
        name: The name of the stream.
        method: GET or HEAD.
        query: The parameters of the query.
        headers: The headers of the request.

    Raises:
        Refused: A parameter is not valid.
    """
    if method == "HEAD":
        return ReadRequest(name, head=True)
    live, offset = query.get("live", ""), query.get("offset")
    if live not in ("", LONG_POLL, SSE) or ("live" in query and not live):
        raise Refused(400, f"The parameter live is {LONG_POLL} or {SSE}.")
    if live and offset is None:
        raise Refused(400, "A live read needs the parameter offset.")
    cursor = query.get("cursor", "")
    return ReadRequest(
        name,
        BEGINNING if offset in (None, FROM_BEGINNING, FROM_NOW) else parse_offset(offset),
        from_now=offset == FROM_NOW,
        live=live,
        cursor=int(cursor) if _CURSOR.match(cursor) else None,
        etags=b", ".join([value for key, value in headers if key == b"if-none-match"]).decode("latin-1"),
    )


def parse_offset(text: str | None) -> Offset:
    """Return an offset of this endpoint, or of an app. Raises Refused if it is neither."""
    match = _OFFSET.match(text or "")
    if match is None:
        raise Refused(400, "The parameter offset is not an offset of this server.")
    return Offset(int(match[1]), int(match[2]))


def show_offset(offset: Offset) -> str:
    """Return an offset as the protocol has it: of one length, so that the order is that of the text. Section 8."""
    return f"{offset.epoch:016d}-{offset.number:016d}"


def next_cursor(now: float, theirs: int | None, chance: float) -> int:
    """Return the cursor of a live answer, section 10.1.

    Args:
        now: The Unix time in seconds.
        theirs: The cursor of the request.
        chance: A random number from 0 to 1.
    """
    current = max(0, int(now) - CURSOR_EPOCH) // CURSOR_SECONDS
    return current if theirs is None or theirs < current else theirs + 1 + int(chance * CURSOR_JITTER)


# Content types, section 9.


def is_json(content_type: str) -> bool:
    """Return whether items are the values of a JSON array, and not bytes that follow each other."""
    return content_type.partition(";")[0].strip().lower() == "application/json"


def is_text(content_type: str) -> bool:
    """Return whether server-sent events hold the items as text, and not in base64."""
    return content_type[:5].lower() == "text/" or is_json(content_type)


def body_of(items: Sequence[Any], content_type: str) -> bytes:
    """Return items as the body of a response.

    In a stream of JSON they are the values of an array; bytes are base64 there, since JSON has none. In any other
    stream they follow each other: text in UTF-8, bytes as they are, and any other item as JSON.
    """
    if is_json(content_type):
        return b"[" + b",".join([_as_json(item) for item in items]) + b"]"
    return b"".join([_bytes_of(item) for item in items])


def _bytes_of(item: Any) -> bytes:
    if isinstance(item, str):
        return item.encode(errors="replace")
    return item if isinstance(item, bytes) else _as_json(item)


def _as_json(item: Any) -> bytes:
    """Return an item as JSON; null for what JSON cannot express, such as a dict whose keys are bytes."""
    try:
        return json.encode(item)
    except (TypeError, ValueError, RecursionError):
        return b"null"


# Answers.


class Batch(NamedTuple):
    """Entries of a stream that follow each other, and the state of the stream behind them."""

    after: Offset
    """The offset in front of the first entry."""
    body: bytes | None
    """The entries as a body; None if there are none."""
    until: Offset
    """The offset of the last entry; `after` if there is none."""
    up_to_date: bool
    """Whether nothing follows at present."""
    state: StreamState
    error: str = ""
    content_type: str = DEFAULT_CONTENT_TYPE
    earliest: Offset | None = None
    """The offset from which the stream can be read; None if it is kept from its beginning."""

    @property
    def over(self) -> bool:
        """Whether nothing follows, ever."""
        return self.state.is_over and self.up_to_date

    @property
    def closed(self) -> bool:
        """Whether nothing follows, ever, and the stream is complete."""
        return self.state is StreamState.ENDED and self.up_to_date

    @property
    def failed(self) -> bool:
        """Whether nothing follows, ever, and the stream is not complete."""
        return self.state is StreamState.FAILED and self.up_to_date

    @property
    def etag(self) -> str:
        """The entity tag, sections 5.6 and 10.1. It changes when the stream ends."""
        state = ":closed" if self.closed else ":failed" if self.failed else ""
        return f'"{show_offset(self.after)}:{show_offset(self.until)}{state}"'


def start_of(page: Page) -> Offset:
    """Return the offset in front of the first entry of a page, or of what comes next."""
    return page.next if not page.items else Offset(page.items[0][0].epoch, page.items[0][0].number - 1)


def batch_of(page: Page, after: Offset) -> Batch:
    """Return a page as a batch.

    Args:
        page: The page of a stream that is there.
        after: The offset behind which it was read.
    """
    start = start_of(page)
    content_type = page.content_type if is_content_type(page.content_type) else DEFAULT_CONTENT_TYPE
    return Batch(
        start if page.reset or after == BEGINNING else after,
        body_of([item for _, item in page.items], content_type) if page.items else None,
        page.last if page.caught_up else page.next,  # a client may name an offset that does not exist yet
        page.caught_up,
        page.state,
        page.error,
        content_type,
        start if start.number else None,
    )


def tail_of(page: Page) -> Batch:
    """Return the end of a stream as a batch, without entries. See `batch_of`."""
    batch = batch_of(page, BEGINNING)
    return batch._replace(after=page.last, body=None, until=page.last, up_to_date=True)


def gone(earliest: Offset) -> Answer:
    """Return the answer if what follows an offset is not kept, section 5.6, or belongs to an earlier stream (I14).

    Args:
        earliest: The offset from which the stream can be read.
    """
    return refuse(410, "What follows this offset is not kept any more.", _earliest(earliest))


def metadata(batch: Batch) -> Answer:
    """Return the answer to HEAD, section 5.5. `batch` is the end of the stream."""
    headers = [_content_type(batch), _STORE_NOTHING, *_COMMON, _next_offset(batch.until)]
    if batch.state is StreamState.ENDED:
        headers.append((b"stream-closed", b"true"))
    elif batch.state is StreamState.FAILED:
        headers.append(_error(batch))
    if batch.earliest is not None:
        headers.append(_earliest(batch.earliest))
    return Answer(200, make_lines(headers, "an answer"))


def respond(request: ReadRequest, batch: Batch, cursor: int) -> Answer | None:
    """Return the answer to a GET.

    Args:
        request: The request.
        batch: What follows the offset of the request.
        cursor: The cursor of a live answer.

    Returns:
        None if a long poll has to wait, or server-sent events are to be sent.
    """
    if batch.failed and batch.body is None:
        text = f"The stream has failed: {batch.error or 'no reason is known'}."
        return refuse(424, text, _error(batch), _next_offset(batch.until))
    if request.live == SSE or (request.live == LONG_POLL and batch.body is None and not batch.closed):
        return None
    return _whole(request, batch, cursor)


def poll_timeout(batch: Batch, cursor: int) -> Answer:
    """Return the answer to a long poll for which nothing has come in time, section 5.7.

    Args:
        batch: The end of the stream.
        cursor: The cursor of the answer.
    """
    return Answer(204, make_lines((*_live(batch, cursor), _STORE_NOTHING, *_COMMON), "an answer"))


def _whole(request: ReadRequest, batch: Batch, cursor: int) -> Answer:
    headers = [*_live(batch, cursor if request.live else None), *_COMMON]
    if batch.failed:
        headers.append(_error(batch))
    if batch.earliest is not None and request.after == BEGINNING:
        headers.append(_earliest(batch.earliest))
    if request.live and batch.body is None:
        headers.append(_STORE_NOTHING)
        return Answer(204, make_lines(headers, "an answer"))
    if request.from_now and not request.live:
        headers.append(_STORE_NOTHING)
    else:
        etag = batch.etag
        headers.append((b"etag", etag.encode()))
        # The answer to the tail changes when more comes, and that to the beginning when the stream begins anew.
        stays = request.after != BEGINNING and not batch.up_to_date
        headers.append(_CACHEABLE if stays else _REVALIDATE)
        known = [each.strip().removeprefix("W/") for each in request.etags.split(",")]
        if not request.live and (etag in known or "*" in known):  # RFC 9110 section 13.1.2
            return Answer(304, make_lines(headers, "an answer"))
    headers.append(_content_type(batch))
    body = body_of((), batch.content_type) if batch.body is None else batch.body
    return Answer(200, make_lines(headers, "an answer"), body)


def _live(batch: Batch, cursor: int | None) -> list[tuple[bytes, bytes]]:
    """Return the headers that say how far the answer goes. The cursor is left out where nothing follows, ever."""
    headers = [_next_offset(batch.until)]
    if batch.up_to_date:
        headers.append((b"stream-up-to-date", b"true"))
    if batch.closed:
        headers.append((b"stream-closed", b"true"))
    elif cursor is not None:
        headers.append((b"stream-cursor", b"%d" % cursor))
    return headers


def _next_offset(offset: Offset) -> tuple[bytes, bytes]:
    return b"stream-next-offset", show_offset(offset).encode()


def _earliest(offset: Offset) -> tuple[bytes, bytes]:
    return b"stream-earliest-offset", show_offset(offset).encode()


def _error(batch: Batch) -> tuple[bytes, bytes]:
    return b"stream-error", _NOT_SHOWN.sub("?", batch.error or "unknown").encode()


def _content_type(batch: Batch) -> tuple[bytes, bytes]:
    return b"content-type", batch.content_type.encode()


# Server-sent events, section 5.8.


def event_stream_head(batch: Batch, request: ReadRequest) -> Answer:
    """Return the head of a response with server-sent events. The body follows."""
    headers = [
        (b"content-type", b"text/event-stream"),
        (b"cache-control", b"no-cache"),
        (b"x-accel-buffering", b"no"),  # or nginx would hold the events back
        *_COMMON,
    ]
    if not is_text(batch.content_type):
        headers.append((b"stream-sse-data-encoding", b"base64"))
    if batch.earliest is not None and request.after == BEGINNING:
        headers.append(_earliest(batch.earliest))
    return Answer(200, make_lines(headers, "an answer"))


def data_event(batch: Batch) -> bytes:
    """Return the entries of a batch as one server-sent event; empty if there are none."""
    if batch.body is None:
        return b""
    if not is_text(batch.content_type):
        return b"event: data\ndata:%b\n\n" % b64encode(batch.body)
    lines = _LINE_ENDS.split(batch.body.decode(errors="replace"))
    # Readers drop one space at the beginning, HTML standard section 9.2.6.
    data = "".join([f"data: {line}\n" if line.startswith(" ") else f"data:{line}\n" for line in lines])
    return b"event: data\n%b\n" % data.encode()


def control_event(batch: Batch, cursor: int) -> bytes:
    """Return the event that says how far the entries of a batch go.

    Args:
        batch: The batch.
        cursor: The cursor with which the client reads on.
    """
    fields: dict[str, Any] = {"streamNextOffset": show_offset(batch.until)}
    if batch.closed:
        fields["streamClosed"] = True
    else:
        fields["streamCursor"] = str(cursor)
    if batch.up_to_date:
        fields["upToDate"] = True
    return b"event: control\ndata:%b\n\n" % json.encode(fields)


# The life of a read.


class ReadState(StrEnum):
    """The state of a read at the interface server."""

    READING = "waits for a page of the stream"
    FOLLOWING = "waits for what is appended"
    DONE = "is answered, or its client is gone"


class ReadEvent(StrEnum):
    """An event in the life of a read."""

    FOLLOW = "has got what is there"
    FINISH = "is answered"


READ_TABLE: Final[dict[tuple[ReadState, ReadEvent], ReadState]] = {
    (ReadState.READING, ReadEvent.FOLLOW): ReadState.FOLLOWING,
    (ReadState.READING, ReadEvent.FINISH): ReadState.DONE,
    (ReadState.FOLLOWING, ReadEvent.FINISH): ReadState.DONE,
    (ReadState.DONE, ReadEvent.FINISH): ReadState.DONE,
}
