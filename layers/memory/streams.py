"""The streams of the memory layer: the model of `redis/streams/`."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any

from asgibus.layers.codec import unpack_items
from asgibus.layers.errors import WriterFenced
from asgibus.layers.settings import StreamLimits
from asgibus.layers.streams.identity import WriterIdentity
from asgibus.layers.streams.messages import StreamMessages
from asgibus.layers.streams.offsets import BEGINNING, Offset
from asgibus.layers.streams.page import Broadcast, Page, StreamState
from asgibus.layers.streams.store import (
    ANOTHER_WRITER,
    DELETED,
    NOT_OPEN,
    PAGE_BYTES,
    REMEMBERED_SECONDS,
    WRITER_GONE,
    Batch,
)

DELETED_SECONDS = 60.0  # for which it is known that a stream was deleted


class _Stored:
    """One stream."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        self.term = 0
        self.writer = ""  # its channel
        self.ended = ""  # the channel of the writer that has ended it
        self.first = 1  # the number of the first entry that is kept
        self.last = 0
        self.bytes = 0
        self.batches: deque[Batch] = deque()
        self.state = StreamState.OPEN
        self.error = ""
        self.cancelled = False
        self.ids: dict[str, int] = {}  # of kept messages of a group: their numbers, the lowest first
        self.content_type = ""
        self.fails_at = 0.0  # while it is open: when it fails unless its writer gives a sign of life
        self.gone_at = math.inf  # when the kept messages of a group expire
        self.expires_at = 0.0

    def trim(self, limits: StreamLimits) -> None:
        """Drop what is over the limits."""
        self.first = max(self.first, self.last - limits.entries + 1)
        while self.batches and self.batches[0].last < self.first:
            self.bytes -= len(self.batches.popleft().packed)
        while len(self.batches) > 1 and self.bytes > limits.bytes:
            dropped = self.batches.popleft()
            self.bytes -= len(dropped.packed)
            self.first = dropped.last + 1

    def read(self, after: int, limit: int) -> list[tuple[Offset, Any]]:
        """Return up to `limit` entries with higher numbers."""
        begin = max(after + 1, self.first)
        found: list[tuple[Offset, Any]] = []
        size = 0
        for batch in self.batches:
            if batch.last < begin:
                continue
            if len(found) >= limit or size >= PAGE_BYTES:
                break
            size += len(batch.packed)
            first = max(begin, batch.first)
            some = unpack_items(batch.packed)[first - batch.first :][: limit - len(found)]
            found += ((Offset(self.epoch, number), item) for number, item in enumerate(some, first))
        return found


class MemoryStreams:
    """The streams of a memory layer: see `StreamStore`. Methods may be called from any event loop.

    Args:
        messages: The messages between the writers, the followers and this store.
        clock: Returns the time in seconds.
        counts: Counts what is appended.
    """

    def __init__(self, messages: StreamMessages, clock: Callable[[], float], counts: Counter[str]) -> None:
        self._counts = counts
        self.messages = messages
        self._clock = clock
        self._lock = threading.Lock()
        self._streams: dict[str, _Stored] = {}
        self._last_epoch = 0

    def clear(self) -> None:
        """Forget all streams, as a store that loses its data."""
        with self._lock:
            self._streams.clear()

    async def begin(self, name: str, writer: WriterIdentity, *, restart: bool) -> Page:
        with self._lock:
            stream = self._find(name)
            fenced = stream.writer if stream is not None and stream.state is StreamState.OPEN else ""
            if stream is None or stream.state is not StreamState.OPEN or restart:
                # A user who pressed "stop" while no writer was there means the writer that comes.
                cancelled = stream is not None and stream.state is StreamState.OPEN and stream.cancelled and not fenced
                stream = self._streams[name] = _Stored(self._new_epoch())
                stream.cancelled = cancelled
            stream.term += 1
            stream.writer, stream.ended = writer.channel, ""
            self.messages.writers[writer.channel] = writer
            stream.content_type = writer.content_type or stream.content_type
            writer.epoch, writer.term = stream.epoch, stream.term
            self._keep_open(stream, writer)
            page = self._page(stream, BEGINNING, 0)
        await self.messages.fence(fenced, ANOTHER_WRITER)
        return page

    async def append(self, name: str, writer: WriterIdentity, batch: Batch, tail: Sequence[Batch] = ()) -> bool:
        with self._lock:
            stream = self._written(name, writer, batch.first - 1, tail)
            self._add(stream, writer, batch)
            writer.kept_bytes = stream.bytes
            self._keep_open(stream, writer)
            return stream.cancelled

    async def renew(self, name: str, writer: WriterIdentity, last: int, tail: Sequence[Batch] = ()) -> bool:
        with self._lock:
            stream = self._written(name, writer, last, tail)
            self._keep_open(stream, writer)
            return stream.cancelled

    async def finish(
        self,
        name: str,
        writer: WriterIdentity,
        last: int,
        state: StreamState,
        error: str = "",
        *,
        grace: float = 0.0,
        tail: Sequence[Batch] = (),
    ) -> None:
        with self._lock:
            stream = self._find(name)
            if stream is None or (stream.epoch, stream.ended) != (writer.epoch, writer.channel):
                stream = self._written(name, writer, last, tail)
            elif grace or stream.state is not StreamState.OPEN:
                return
            stream.writer, stream.ended = "", writer.channel
            stream.error = error
            now = self._clock()
            stream.expires_at = now + grace + writer.limits.kept
            if grace:
                stream.fails_at = now + grace
            else:
                stream.state = state

    async def leave(self, name: str, writer: WriterIdentity) -> None:
        self.messages.writers.pop(writer.channel, None)

    async def page(self, name: str, after: Offset, limit: int) -> Page:
        with self._lock:
            return self._page(self._find(name), after, limit)

    async def cancel(self, name: str) -> bool:
        with self._lock:
            stream = self._find(name)
            if stream is None or stream.state is not StreamState.OPEN:
                return False
            stream.cancelled = True
            writer = stream.writer
        await self.messages.ask_to_stop(writer)
        return True

    async def delete(self, name: str) -> bool:
        with self._lock:
            stream = self._find(name)
            if stream is None or stream.state is StreamState.ABSENT:
                return False
            fenced = stream.writer
            deleted = self._streams[name] = _Stored(stream.epoch)
            deleted.state, deleted.last, deleted.first = StreamState.ABSENT, stream.last, stream.last + 1
            deleted.expires_at = self._clock() + DELETED_SECONDS
        await self.messages.fence(fenced, DELETED)
        await self.messages.tell(Broadcast(name, stream.epoch, stream.last + 1, state=StreamState.ABSENT))
        return True

    async def keep(self, name: str, packed: bytes, limits: StreamLimits, message_id: str) -> tuple[bool, Offset]:
        with self._lock:
            stream = self._find(name)
            if stream is None or stream.state is not StreamState.OPEN:
                stream = self._streams[name] = _Stored(self._new_epoch())
            number = stream.ids.get(message_id)
            if number is not None and number >= stream.first:
                return False, Offset(stream.epoch, number)
            stream.last += 1
            stream.batches.append(Batch(stream.last, packed, 1))
            stream.bytes += len(packed)
            stream.trim(limits)
            stream.ids[message_id] = stream.last
            while next(iter(stream.ids.values())) < stream.first:
                del stream.ids[next(iter(stream.ids))]
            stream.gone_at = self._clock() + limits.kept
            stream.fails_at = stream.expires_at = stream.gone_at + REMEMBERED_SECONDS
            return True, Offset(stream.epoch, stream.last)

    def _find(self, name: str) -> _Stored | None:
        """Return a stream that has not expired, in the state that it has by now."""
        now = self._clock()
        stream = self._streams.get(name)
        if stream is None:
            return None
        if stream.expires_at <= now:
            for each in [each for each, other in self._streams.items() if other.expires_at <= now]:
                del self._streams[each]
            return None
        if stream.gone_at <= now:
            stream.batches.clear()
            stream.ids.clear()
            stream.first, stream.bytes = stream.last + 1, 0
        if stream.state is StreamState.OPEN and stream.fails_at <= now:
            stream.state = StreamState.FAILED
            stream.error = stream.error or WRITER_GONE
        return stream

    def _written(self, name: str, writer: WriterIdentity, last: int, tail: Sequence[Batch] = ()) -> _Stored:
        """Return a stream for its writer, whose newest entry has the number `last`. Raises WriterFenced."""
        stream = self._find(name)
        if stream is not None:
            if stream.epoch > writer.epoch:
                raise WriterFenced(name, ANOTHER_WRITER)
            if stream.state is StreamState.ABSENT and stream.epoch == writer.epoch:
                raise WriterFenced(name, DELETED)
            age = (stream.epoch, stream.term)
            if stream.writer != writer.channel and age >= (writer.epoch, writer.term):
                raise WriterFenced(name, ANOTHER_WRITER if stream.writer else NOT_OPEN)
            if age >= (writer.epoch, writer.term) and stream.last >= last:
                stream.state, stream.error = StreamState.OPEN, ""  # it was only silent, if the stream had failed
                return stream
        # The store has lost its data, or has gone back to an earlier state.
        stream = self._streams[name] = _Stored(writer.epoch)
        stream.writer, stream.term, stream.content_type = writer.channel, writer.term, writer.content_type
        stream.last = tail[0].first - 1 if tail else last
        stream.first = stream.last + 1
        for batch in tail:
            self._add(stream, writer, batch)
        return stream

    def _add(self, stream: _Stored, writer: WriterIdentity, batch: Batch) -> None:
        if stream.last < batch.last:
            stream.batches.append(batch)
            stream.bytes += len(batch.packed)
            stream.last = batch.last
            self._counts["stream entry"] += batch.count
            self._counts["stream byte"] += len(batch.packed)
            stream.trim(writer.limits)

    def _keep_open(self, stream: _Stored, writer: WriterIdentity) -> None:
        stream.state, stream.error = StreamState.OPEN, ""
        stream.fails_at = self._clock() + writer.silence
        stream.expires_at = stream.fails_at + writer.limits.kept

    def _page(self, stream: _Stored | None, after: Offset, limit: int) -> Page:
        if stream is None:
            return Page([], BEGINNING, BEGINNING, StreamState.ABSENT, next=after)
        first, last = Offset(stream.epoch, stream.first), Offset(stream.epoch, stream.last)
        if stream.state is StreamState.ABSENT:
            return Page([], first, last, stream.state, reset=after != BEGINNING, next=BEGINNING)
        if after == BEGINNING:
            after = Offset(stream.epoch, 0)
        reset = after.epoch != stream.epoch or after.number < stream.first - 1
        # As in stream_page.lua: without a writer, other entries get the numbers of those that are lost.
        reset = reset or (after.number > stream.last and not stream.writer and stream.state is StreamState.OPEN)
        if reset:
            after = Offset(stream.epoch, stream.first - 1)
        items = stream.read(after.number, limit) if limit else []
        is_open = stream.state is StreamState.OPEN
        return Page(
            items,
            first,
            last,
            stream.state,
            "" if is_open else stream.error,
            stream.cancelled,
            reset,
            items[-1][0] if items else after,
            max(0.0, stream.fails_at - self._clock()) if is_open else None,
            stream.bytes,
            stream.content_type,
        )

    def _new_epoch(self) -> int:
        self._last_epoch = max(self._last_epoch + 1, round(time.time() * 1000))
        return self._last_epoch
