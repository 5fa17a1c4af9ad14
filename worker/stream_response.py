"""A stream as an event stream for one client: `asgibus.stream_response`.

Over asgibus, the interface server sends the entries. The app returns, and no worker takes part from then on. On any
other server the app itself reads the stream and sends the entries.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from contextlib import suppress
from typing import Any, Final
from urllib.parse import parse_qs

import anyio

from asgibus.layers.errors import LayerUnavailable, StreamError, StreamReset
from asgibus.layers.names import require_stream
from asgibus.layers.streams import BEGINNING, Offset, Page, Stream, StreamState, parse_offset
from asgibus.layers.streams.offsets import client_offset
from asgibus.protocol.event_stream import LAST_EVENT_ID
from asgibus.protocol.events import RESPONSE_BODY
from asgibus.protocol.followers import Delivery
from asgibus.protocol.stream_frames import KEEP_ALIVE, StreamFrames, Template, read_template, sse_template
from asgibus.worker.connection import Extension
from asgibus.worker.local_layer import local_layer

logger = logging.getLogger("asgibus.worker")

Headers = Iterable[tuple[bytes, bytes]]
Message = MutableMapping[str, Any]

KEEP_ALIVE_SECONDS = 15.0  # of silence, on other servers; that of interface servers is `--stream-keep-alive`
_HEADERS: Final = (
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # for nginx
)


async def stream_response(
    scope: Mapping[str, Any],
    receive: Callable[[], Awaitable[Any]],
    send: Callable[[Message], Awaitable[None]],
    stream: str | Stream,
    *,
    after: str | None = None,
    template: Template | None = None,
    event: str = "",
    headers: Headers = (),
) -> None:
    """Answer a request with the entries of a stream, as server-sent events.

    An event has the offset as its `id`, and as its `data` the entry, as JSON by default. When the stream is over, an
    event `end` or `error` follows and the response ends; the client that connects again is answered with 204, so that
    an `EventSource` stops. An event `reset` says that entries which the client lacks are gone.

    The first that there is counts: the header `Last-Event-ID`, the query parameter `after`, the argument `after`.

    Args:
        scope: The scope of the request.
        receive: ASGI's `receive`.
        send: ASGI's `send`.
        stream: The stream, or its name.
        after: The offset of the last entry that the client has; None or "" for the beginning. Any other text is
            answered with a reset, and all that is kept.
        template: What the client gets: `"raw"`, or the `data` of the events by what they are for. See the page "Keep
            and follow a stream".
        event: The type of the events of entries; by default they have none.
        headers: Further headers of the response.

    Raises:
        TypeError: The name of the stream is not valid.
        ValueError: The template is not valid, or the offset is no text.
        RuntimeError: The scope is not one of a request.
    """
    if scope["type"] != "http":
        raise RuntimeError("only requests are answered with a stream: have a WebSocket call connection(scope).follow")
    packed = sse_template(template, event)
    extension = (scope.get("extensions") or {}).get("asgibus")
    session = extension.session if isinstance(extension, Extension) else None
    layer = local_layer() if session is None else session.layer
    if isinstance(stream, str):
        stream = layer.stream(require_stream(stream))
    offset, again = _offset_of(scope, after)
    if again and await _is_over(stream, offset):
        await send({"type": "http.response.start", "status": 204, "headers": [(b"cache-control", b"no-store")]})
        await send({"type": "http.response.body"})
        return
    head = [*headers]
    given = {name.lower() for name, _ in head}
    head += [each for each in _HEADERS if each[0] not in given]
    await send({"type": "http.response.start", "status": 200, "headers": head})
    if scope["method"] == "HEAD":
        await send({"type": "http.response.body"})
        return
    # The first part is a comment, so that the client has the head, whatever middleware there is.
    await send({"type": "http.response.body", "body": KEEP_ALIVE[1], "more_body": True})
    if session is not None and session.may_detach and layer.any_stream(stream.name).shares_store_with(stream):
        session.detach(stream.name, str(offset), packed)
    else:
        await _Reading(stream, read_template(packed), send).run(offset, receive)


def _offset_of(scope: Mapping[str, Any], after: str | None) -> tuple[Offset, bool]:
    """Return the offset after which a client goes on, and whether it has got that in an earlier response."""
    last = dict(scope["headers"]).get(LAST_EVENT_ID)
    if last:
        return client_offset(last.decode("latin-1")), True
    given = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("after")
    return client_offset(given[0] if given else after), False


async def _is_over(stream: Stream, offset: Offset) -> bool:
    """Return whether a client that has everything up to this offset has got the end, too."""
    with suppress(LayerUnavailable):  # the client gets its entries once the store is there
        page: Page = await stream.page(offset, 1)
        return page.over and not page.items and not page.reset
    return False


class _Reading:
    """Reads a stream for a client of another server.

    Args:
        stream: The stream.
        frames: What the client gets.
        send: ASGI's `send`.
    """

    def __init__(self, stream: Stream, frames: StreamFrames, send: Callable[[Message], Awaitable[None]]) -> None:
        self._stream = stream
        self._frames = frames
        self._send = send
        self._lock = asyncio.Lock()
        self._sent = False  # whether something was sent since the last comment

    async def run(self, offset: Offset, receive: Callable[[], Awaitable[Any]]) -> None:
        """Send entries until the stream is over, or the client is gone."""
        async with anyio.create_task_group() as tasks:

            async def watch() -> None:
                while (await receive())["type"] != "http.disconnect":
                    pass
                tasks.cancel_scope.cancel()

            async def keep_alive() -> None:
                while True:
                    self._sent = False
                    await anyio.sleep(KEEP_ALIVE_SECONDS)
                    if not self._sent:
                        await self._write(KEEP_ALIVE[1])

            tasks.start_soon(watch)
            tasks.start_soon(keep_alive)
            await self._read(offset)
            async with self._lock:
                await self._send({"type": "http.response.body"})
            tasks.cancel_scope.cancel()

    async def _read(self, offset: Offset) -> None:
        over, error = StreamState.ENDED, ""
        while True:
            try:
                async for text, item in self._stream.read(offset):
                    offset = parse_offset(text)
                    await self._deliver(offset, entries=[(offset, item)])
            except StreamReset as reset:
                offset = parse_offset(reset.resume)
                await self._deliver(offset, reset=offset)
                continue
            except StreamError as failure:
                over, error = StreamState.FAILED, failure.error
            break
        if offset == BEGINNING:
            with suppress(LayerUnavailable):
                offset = (await self._stream.info()).last
        await self._deliver(offset, over=over, error=error)

    async def _deliver(
        self,
        offset: Offset,
        *,
        reset: Offset | None = None,
        entries: Iterable[tuple[Offset, Any]] = (),
        over: StreamState | None = None,
        error: str = "",
    ) -> None:
        delivery: Delivery[Any] = Delivery((), reset, [*entries], over, error, offset)
        bad: list[str] = []
        for event in self._frames.events(self._stream.name, delivery, bad):
            if event[0] == RESPONSE_BODY:
                await self._write(event[1])
        for why in bad:
            logger.warning("an entry of stream %r could not be written: %s", self._stream.name, why)

    async def _write(self, body: bytes) -> None:
        async with self._lock:
            self._sent = True
            await self._send({"type": "http.response.body", "body": body, "more_body": True})
