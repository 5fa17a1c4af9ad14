"""Streams that HTTP clients read with the Durable Streams protocol. The interface server answers these by itself.

`StreamEndpoint` recognizes the requests, checks their signatures and reads pages. `StreamReader` is one request: it
gets a page, and if that is not the whole answer, it follows the stream like any other follower.
`protocol.durable_streams` has the decisions. A reader that waits costs no task, no timer and no command of Redis.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol
from urllib.parse import unquote, unquote_to_bytes

from asgibus.interface_server.callback_tasks import CallbackTasks
from asgibus.interface_server.connections.followers import Following
from asgibus.interface_server.terminator import FAULT, abort_faulty
from asgibus.layers.channel_layer import ChannelLayer
from asgibus.layers.errors import LayerUnavailable
from asgibus.layers.streams.offsets import BEGINNING, Offset
from asgibus.layers.streams.page import Page, StreamState
from asgibus.protocol import durable_streams as durable
from asgibus.protocol.durable_streams import READ_TABLE, Answer, Batch, ReadEvent, ReadRequest, ReadState, Refused
from asgibus.protocol.events import RESPONSE, RESPONSE_BODY, RESPONSE_END, RESPONSE_START, Event
from asgibus.protocol.followers import Delivery, FollowState
from asgibus.protocol.states import transition
from asgibus.protocol.stream_names import SIGNATURE, require_key, why_refused

if TYPE_CHECKING:
    from asgibus.interface_server.connections.registry import ConnectionRegistry
    from asgibus.interface_server.http.request import Request
    from asgibus.interface_server.settings import InterfaceSettings

logger = logging.getLogger("asgibus.interface")

PAGE_ENTRIES: Final = 500  # of one answer, or the beginning of server-sent events
READS_AT_ONCE: Final = 16  # pages that are read at a time, so that a burst of clients does not fill the memory
READERS_AT_ONCE: Final = 32  # that are answered with a page in one callback of the event loop
EVENTS_SECONDS: Final = 60.0  # that server-sent events last, section 5.8; then the client connects again

_SIGNATURE_SHOWN: Final = b"signature=..."
_FAULT: Final = durable.refuse(500, "The stream cannot be read.")
_AWAY: Final = (503, "The streams cannot be read now.")
_MISSING: Final = durable.refuse(404, "There is no stream of this name.")


class _Read(NamedTuple):
    """A page to be read."""

    name: str
    after: Offset | None
    """The offset behind which to read; None for the end of the stream."""


class StreamTerminator(Protocol):
    """The socket of a request, as its reader sees it."""

    write_paused: bool

    def write_event(self, event: Event, /) -> None:
        """Write an event of the response."""

    def flush(self) -> None:
        """Write the head, if it is held."""

    def reader_done(self) -> None:
        """Forget the reader, whose last event follows."""

    def abort(self) -> None:
        """Close the socket at once."""


class _Deliveries:
    """Passes deliveries to readers as they are: each encodes them by its own request. See `Frames`."""

    packed = b""

    def events(self, stream: str, delivery: Delivery[Any], bad: list[str]) -> Sequence[Event]:
        """Return a delivery in the place of events."""
        return ((_DELIVERY, delivery),)


_DELIVERY: Final = -1  # in the place of the number of an event
_DELIVERIES: Final = _Deliveries()


class StreamEndpoint:
    """The streams of a server that HTTP clients may read.

    Args:
        settings: The settings of the server, with a path of streams.
        layer: The channel layer.
        connections: The registry, which counts and has the clock.
        tasks: Runs the reading of pages.
        loop: The event loop.
    """

    def __init__(
        self,
        settings: InterfaceSettings,
        layer: ChannelLayer,
        connections: ConnectionRegistry,
        tasks: CallbackTasks,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._seconds = settings.connect_timeout
        self._prefix = f"{settings.streams}/".encode()
        self._keys = None if settings.streams_unsigned else [require_key(each) for each in settings.streams_keys]
        self._layer = layer
        self._tasks = tasks
        self._loop = loop
        self._due: dict[_Read, list[StreamReader]] = {}  # readers of pages that are not being read yet
        self._under_way: set[_Read] = set()
        self._tasks_reading = 0
        self.readers: set[StreamReader] = set()
        """The reads that are not answered in full."""
        self.connections = connections
        self.poll_seconds = settings.streams_poll_timeout

    def open(self, request: Request, terminator: StreamTerminator) -> StreamReader | None:
        """Return a reader that is going to answer a request; None if the request is one for the app.

        Args:
            request: The request. The access log does not show its signature, whoever answers.
            terminator: The socket.
        """
        if not request.raw_path.startswith(self._prefix):
            return None
        self._hide_signature(request)
        if not durable.is_for_reading(request.method, request.headers):
            return None
        reader = StreamReader(self, terminator)
        try:
            self._begin(reader, request)
        except Refused as refused:
            self._loop.call_soon(reader.answer, refused.answer)
        return reader

    @staticmethod
    def _hide_signature(request: Request) -> None:
        """Remove the signature from the log: a reader of the log must not be able to read the stream."""
        if request.query_string:
            shown = [_SIGNATURE_SHOWN if _is_signature(each) else each for each in request.query_string.split(b"&")]
            request.target = request.raw_path + b"?" + b"&".join(shown)

    def _begin(self, reader: StreamReader, request: Request) -> None:
        """Have a reader answer a request. Raises Refused."""
        if request.method == "OPTIONS":
            self._loop.call_soon(reader.answer, durable.preflight())
            return
        query = durable.parse_query(request.query_string)
        name = unquote(request.raw_path[len(self._prefix) :].decode("latin-1"))
        if self._keys is not None and (why := why_refused(name, query, self._keys, time.time())):
            self.connections.counts["stream refused"] += 1
            raise Refused(403, why)
        reader.request = durable.parse(durable.find_name(name), request.method, query, request.headers)
        if not self.connections.bus.available:
            raise Refused(*_AWAY)
        self.read(reader)

    def restore(self, state: Mapping[str, Any], terminator: StreamTerminator) -> StreamReader:
        """Return the reader of another process, which goes on.

        Args:
            state: The result of `StreamReader.export` there.
            terminator: The socket.
        """
        reader = StreamReader(self, terminator)
        reader.restore(state)
        return reader

    # Pages.

    def read(self, reader: StreamReader) -> None:
        """Read a page for a reader, which gets it by `StreamReader.on_page`.

        Readers that come while the same page is being read share the next reading of it: this one may have begun before
        something was appended that they know of.
        """
        request = reader.request
        key = _Read(request.name, None if request.head or request.from_now else request.after)
        self._due.setdefault(key, []).append(reader)
        if self._tasks_reading < READS_AT_ONCE and key not in self._under_way:
            self._tasks_reading += 1
            self._tasks.start_soon(self._read_due)

    async def _read_due(self) -> None:
        """Read pages until none is due that is not being read."""
        try:
            while key := next((each for each in self._due if each not in self._under_way), None):
                readers = self._due.pop(key)
                self._under_way.add(key)
                try:
                    await self._read(key, readers)
                finally:
                    self._under_way.discard(key)
        finally:
            self._tasks_reading -= 1

    async def _read(self, key: _Read, readers: Sequence[StreamReader]) -> None:
        answer: Answer | None = None
        try:
            stream = self._layer.stream(key.name)
            async with asyncio.timeout(self._seconds):
                page = await (stream.info() if key.after is None else stream.page(key.after, PAGE_ENTRIES))
            batch = durable.tail_of(page) if key.after is None else durable.batch_of(page, key.after)
        except (LayerUnavailable, TimeoutError) as error:
            self.connections.log.count("stream not read", "stream %r could not be read: %s", key.name, error)
            answer = Refused(*_AWAY).answer
        except Exception:  # whatever it is, the clients must get an answer
            self.connections.counts["fault"] += 1
            logger.exception("stream %r could not be read", key.name)
            answer = _FAULT
        shared: dict[Any, Any] = {}
        for number, reader in enumerate(readers, 1):
            if not number % READERS_AT_ONCE:
                await asyncio.sleep(0)
            try:
                if answer is not None:
                    reader.answer(answer)
                else:
                    reader.on_page(page, batch, shared)
            except Exception:  # the other readers still get theirs
                logger.exception(FAULT, abort_faulty(reader, self.connections.counts))


def _is_signature(parameter: bytes) -> bool:
    """Return whether a parameter of a query is the signature, however its name is encoded."""
    return unquote_to_bytes(parameter.partition(b"=")[0]) == SIGNATURE.encode()


class StreamReader:
    """One request for a stream.

    Args:
        endpoint: The endpoint.
        terminator: The socket.
    """

    __slots__ = (
        "_batch",
        "_chance",
        "_endpoint",
        "_following",
        "_stops",
        "_terminator",
        "_until",
        "_writes_events",
        "follows",
        "request",
        "state",
    )

    _batch: Batch
    """The end of what the client has got."""
    _following: Following

    def __init__(self, endpoint: StreamEndpoint, terminator: StreamTerminator) -> None:
        self._endpoint = endpoint
        self._terminator = terminator
        self._chance = random.random()
        self._until = math.inf  # when the wait, or the response with server-sent events, ends
        self.follows: dict[str, Following] | None = None
        """The stream that this reader follows. See `Reader`."""
        self._stops = False  # whether nothing is waited for
        self._writes_events = False  # whether the head of server-sent events is written
        self.request = ReadRequest("")
        self.state = ReadState.READING
        endpoint.readers.add(self)

    # From the stream.

    def on_page(self, page: Page, batch: Batch, shared: dict[Any, Any]) -> None:
        """Handle the page that was read. `batch` is the same, encoded, and `shared` has what others wrote of it."""
        request = self.request
        if self.state is not ReadState.READING:
            pass  # the client is gone
        elif page.state is StreamState.ABSENT:
            self.answer(_MISSING)
        elif page.reset and request.after != BEGINNING:
            self.answer(durable.gone(durable.start_of(page)))
        elif request.head:
            self.answer(durable.metadata(batch))
        else:
            self._on_first(batch, shared)

    def _on_first(self, batch: Batch, shared: dict[Any, Any]) -> None:
        """Handle the first batch, which answers the request unless that is for what is appended."""
        request = self.request
        answer = durable.respond(request, batch, self._cursor)
        if answer is not None:
            self.answer(answer)
            return
        self._batch = batch._replace(body=None)
        if request.live == durable.SSE:
            self._write_head(batch, shared)
        if batch.over:
            self.finish()
            return
        # Clients that came at the same time, such as after a deploy, do not all come back at the same time.
        long = EVENTS_SECONDS * (0.75 + self._chance / 2)
        self._follow(long if self._writes_events else self._endpoint.poll_seconds)
        if self._stops:
            self.finish()

    def _follow(self, seconds: float, *, at_once: bool = True) -> None:
        """Wait for what is appended, for so long. See `Followers.add`."""
        self.state = transition(READ_TABLE, self.state, ReadEvent.FOLLOW)
        self._until = self._endpoint.connections.now + seconds
        self._following = Following(self, _DELIVERIES, self._batch.until, detached=True)
        self._endpoint.connections.followers.add(self.request.name, self._following, at_once=at_once)

    @property
    def shared_writer(self) -> StreamReader:
        """The reader itself: what it gets is not for the socket as it is. See `Reader`."""
        return self

    @property
    def write_paused(self) -> bool:
        """Whether the socket has no room. See `Output`."""
        return self._terminator.write_paused

    def abort(self) -> None:
        """See `Output`."""
        self._terminator.abort()

    def write_shared(self, events: Sequence[Event], shared: dict[str, Any]) -> None:
        """Handle what was appended, or the silence of the stream. See `Output`."""
        for event in events:
            if event[0] == _DELIVERY:
                self._on_delivery(event[1], shared)
            elif self._writes_events:
                self._terminator.write_event(event)

    def group_done(self, group: str, error: str | None) -> None:
        """Ignore that the stream is followed now: the endpoint tries again where that has failed. See `Reader`."""

    def end_detached(self) -> None:
        """Ignore the end of the stream, which was delivered. See `Reader`."""

    def _on_delivery(self, delivery: Delivery[Following], shared: dict[Any, Any]) -> None:
        if self.state is not ReadState.FOLLOWING:
            return
        if delivery.reset is not None:  # events end; then the client reads on, and gets this answer
            self.answer(_MISSING if delivery.reset == BEGINNING else durable.gone(delivery.reset))
            return
        before = self._batch
        key = "body", before.content_type
        if key not in shared and delivery.entries:
            shared[key] = durable.body_of([item for _, item in delivery.entries], before.content_type)
        batch = before._replace(
            after=before.until,
            body=shared.get(key),
            until=delivery.offset,
            up_to_date=delivery.over is not None or self._following.state is FollowState.LIVE,
            state=delivery.over or StreamState.OPEN,
            error=delivery.error,
        )
        self._batch = batch._replace(body=None)
        if self._writes_events:
            self._write_batch(batch, shared)
            if batch.over:
                self.finish()
            return
        answer = durable.respond(self.request._replace(after=batch.after), batch, self._cursor)
        if answer is not None:
            self.answer(answer)

    def _write_batch(self, batch: Batch, shared: dict[Any, Any]) -> None:
        key = "event", batch.content_type
        data = shared.get(key)
        if data is None:
            data = shared[key] = durable.data_event(batch)
        self._terminator.write_event((RESPONSE_BODY, data + durable.control_event(batch, self._cursor)))

    # To the client.

    def _write_head(self, batch: Batch, shared: dict[Any, Any]) -> None:
        head = durable.event_stream_head(batch, self.request)
        self._writes_events = True
        self._terminator.write_event((RESPONSE_START, head.status, head.headers))
        self._terminator.flush()
        self._write_batch(batch, shared)

    def answer(self, answer: Answer) -> None:
        """Answer with a whole response, unless the request is answered. Server-sent events end instead."""
        if self.state is ReadState.DONE:
            return
        self.close()
        self._terminator.reader_done()
        if self._writes_events:
            self._terminator.write_event((RESPONSE_END, b""))
        else:
            self._terminator.write_event((RESPONSE, *answer))

    def finish(self) -> None:
        """End the response now: the client reads on from where it is."""
        self.answer(durable.poll_timeout(self._batch, self._cursor))

    @property
    def _cursor(self) -> int:
        """The cursor of a live answer. It does not decrease."""
        return durable.next_cursor(time.time(), self.request.cursor, self._chance)

    # From the socket.

    def stop_waiting(self) -> None:
        """Answer with what is there, because the client sends no more, or the server stops."""
        self._stops = True
        if self.state is ReadState.FOLLOWING:
            self.finish()

    def tick(self, now: float) -> None:
        """Handle the passing of time. To be called about once a second."""
        if self.state is not ReadState.FOLLOWING:
            return
        if now >= self._until:
            self.finish()

    def resume(self) -> None:
        """Read on, because the socket has room again."""
        if self.state is ReadState.FOLLOWING:
            self._endpoint.connections.followers.release(self)

    def close(self) -> None:
        """Forget the request, because it is answered, or its client is gone."""
        if self.state is ReadState.FOLLOWING:
            followers = self._endpoint.connections.followers
            if not self._writes_events:
                followers.keep(self.request.name)
            followers.remove(self)
        self.state = transition(READ_TABLE, self.state, ReadEvent.FINISH)
        self._endpoint.readers.discard(self)

    # The move to another process.

    @property
    def may_move(self) -> bool:
        """Whether no page is being read."""
        return self.state is ReadState.FOLLOWING

    def export(self) -> dict[str, Any]:
        """Return the state, as `restore` takes it."""
        now = self._endpoint.connections.now
        batch = self._batch
        return {
            "name": self.request.name,
            "live": self.request.live,
            "cursor": self.request.cursor,
            "until": batch.until,
            "up_to_date": batch.up_to_date,
            "content_type": batch.content_type,
            "left": self._until - now,
            "writes_events": self._writes_events,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on where the reader of another process has stopped. `state` is the result of `export` there."""
        until = Offset(*state["until"])
        self.request = ReadRequest(state["name"], until, live=state["live"], cursor=state["cursor"])
        self._batch = Batch(until, None, until, state["up_to_date"], StreamState.OPEN, "", state["content_type"])
        self._writes_events = state["writes_events"]
        self._follow(state["left"], at_once=False)
