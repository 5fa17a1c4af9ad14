"""The streams of a layer, in Redis.

The state of a stream is a hash, and its batches are a Redis stream whose ids are offsets, both in one hash slot. Every
script decides by the clock of Redis.

Each process has a set of the streams that it writes, so that others can end them when it has died. A stream is in the
set of the process-local channels of its layer, and in those of the servers that use this layer object: a supervisor
reports the death of a server at once.
"""

from __future__ import annotations

import logging
import os
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import suppress
from typing import Any, Protocol, TypeVar

from asgibus.layers.codec import unpack_items
from asgibus.layers.errors import LayerUnavailable, WriterFenced
from asgibus.layers.names import require_channel, require_stream, split_local
from asgibus.layers.redis import scripts
from asgibus.layers.redis.client import ignore_reply
from asgibus.layers.redis.codec import EntryCodec
from asgibus.layers.redis.pipeline import Refused, Store
from asgibus.layers.settings import StreamLimits
from asgibus.layers.streams.identity import UNWATCHED_SECONDS, WRITER_SECONDS, WriterIdentity
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

logger = logging.getLogger("asgibus.layers")

T = TypeVar("T")
Work = Callable[[], Coroutine[Any, Any, T]]

DELETED_MS = 60_000  # for which it is known that a stream was deleted
WRITING_SECONDS = 3600  # for which the streams of a process are listed; its writers add them again sooner
REFUSALS = ("", ANOTHER_WRITER, NOT_OPEN, DELETED)  # as in stream_written.lua
LOST = 4  # likewise


class Stores(Protocol):
    """The stores of a layer: see `store.Shards`."""

    def client_of(self, name: str, until: float | None = None) -> Awaitable[Store]: ...

    def clients(self) -> Iterable[Awaitable[Store]]: ...

    def __len__(self) -> int: ...


class Servers:
    """The mailboxes of the servers in this process, by the addresses of their stores and the prefix.

    An app may have another layer object than its worker.
    """

    def __init__(self) -> None:
        self._mailboxes: dict[tuple[str, str], set[str]] = {}
        os.register_at_fork(after_in_child=self._mailboxes.clear)

    def of(self, address: str, prefix: str) -> set[str]:
        """Return the mailboxes, in a set that may be altered."""
        return self._mailboxes.setdefault((address, prefix), set())


_servers = Servers()


class Layer(Protocol):
    """The layer, as its streams use it."""

    def run(self, work: Work[T]) -> Awaitable[T]:
        """Await `work()` in an event loop that lasts."""

    @property
    def address(self) -> str: ...

    prefix: str

    def send_until(self) -> float:
        """Return when a call gives up, by the clock of the running event loop."""


class RedisStreams:
    """The streams of a layer: see `StreamStore`. Methods may be called from any event loop.

    Args:
        layer: The layer.
        messages: The messages between the writers, the followers and this store.
        stores: Its stores.
        entries: Encrypts batches, and logs those that cannot be read.
        counts: Counts what is appended and lost.
    """

    def __init__(
        self, layer: Layer, messages: StreamMessages, stores: Stores, entries: EntryCodec, counts: Counter[str]
    ) -> None:
        self._layer = layer
        self.messages = messages
        self._stores = stores
        self._entries = entries
        self._counts = counts
        self._untold: deque[Broadcast] = deque()  # of streams that were ended here, whose writers have died

    # Called by writers.

    async def begin(self, name: str, writer: WriterIdentity, *, restart: bool) -> Page:
        fenced, page = await self._layer.run(lambda: self._begin(name, writer, restart))
        self.messages.writers[writer.channel] = writer
        await self.messages.fence(fenced, ANOTHER_WRITER)
        return page

    async def _begin(self, name: str, writer: WriterIdentity, restart: bool) -> tuple[str, Page]:
        # Servers watch one store. Elsewhere, other processes of its kind notice that this one dies, if there are any.
        writer.silence = UNWATCHED_SECONDS if len(self._stores) > 1 and not self._servers else WRITER_SECONDS
        times = _ms(writer.silence), _ms(writer.grace), _ms(writer.limits.kept)
        store = await self._stores.client_of(name, self._layer.send_until())
        self._list(store, name, writer)
        reply = await self._call(
            store, scripts.STREAM_BEGIN, name, writer.channel, int(restart), *times, writer.content_type
        )
        fenced, epoch, term, first, last, cancelled = reply
        writer.epoch, writer.term = int(epoch), int(term)
        offsets = Offset(writer.epoch, int(first)), Offset(writer.epoch, int(last))
        return fenced.decode(), Page([], *offsets, StreamState.OPEN, cancelled=cancelled == b"1", next=offsets[1])

    async def append(self, name: str, writer: WriterIdentity, batch: Batch, tail: Sequence[Batch] = ()) -> bool:
        cancelled = await self._layer.run(lambda: self._append(name, writer, batch.first - 1, batch, tail))
        self._counts["stream entry"] += batch.count
        self._counts["stream byte"] += len(batch.packed)
        return cancelled

    async def renew(self, name: str, writer: WriterIdentity, last: int, tail: Sequence[Batch] = ()) -> bool:
        return await self._layer.run(lambda: self._append(name, writer, last, None, tail))

    async def _append(
        self, name: str, writer: WriterIdentity, last: int, batch: Batch | None, tail: Sequence[Batch]
    ) -> bool:
        """Append a batch, or give a sign of life without one. Return whether the writer is to stop."""
        store = await self._stores.client_of(name, self._layer.send_until())
        if batch is None:
            self._list(store, name, writer)
        cancelled, lost = await self._append_one(store, name, writer, last, batch, can_lose=not tail)
        if lost:
            for each in (*tail, batch) if batch else tail:
                cancelled, _ = await self._append_one(store, name, writer, each.first - 1, each, can_lose=True)
        return cancelled

    async def _append_one(
        self, store: Store, name: str, writer: WriterIdentity, before: int, batch: Batch | None, *, can_lose: bool
    ) -> tuple[bool, bool]:
        """Append one batch.

        Returns:
            Whether the writer is to stop, and whether the store has lost the entries before: then nothing was stored,
            unless `can_lose`.
        """
        limits = writer.limits
        times = _ms(writer.silence), _ms(writer.grace), _ms(limits.kept)
        identity = writer.channel, writer.epoch, writer.term
        arguments: tuple[str | bytes | int, ...] = *identity, *times, writer.content_type, before
        if batch is None:
            arguments = *arguments, before, int(can_lose)
        else:
            sealed = self._entries.seal(store.keys.stream(name), batch.packed)
            arguments = *arguments, batch.last, int(can_lose), limits.entries, limits.bytes, sealed
        refused, cancelled, kept = await self._call(store, scripts.STREAM_APPEND, name, *arguments)
        if 0 < refused < LOST:
            raise WriterFenced(name, REFUSALS[refused])
        writer.kept_bytes = int(kept)
        return cancelled == b"1", refused == LOST

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
        await self._layer.run(lambda: self._finish(name, writer, last, state, error, grace, tail))

    async def _finish(
        self,
        name: str,
        writer: WriterIdentity,
        last: int,
        state: StreamState,
        error: str,
        grace: float,
        tail: Sequence[Batch],
    ) -> None:
        times = _ms(writer.limits.kept), _ms(grace)
        identity = writer.channel, writer.epoch, writer.term
        ends = last, times[0], state, error, times[1], writer.content_type
        store = await self._stores.client_of(name, self._layer.send_until())
        refused = await self._call(store, scripts.STREAM_FINISH, name, *identity, *ends, int(not tail))
        if refused == LOST:
            for each in tail:
                await self._append_one(store, name, writer, each.first - 1, each, can_lose=True)
            refused = await self._call(store, scripts.STREAM_FINISH, name, *identity, *ends, 1)
        if refused:
            raise WriterFenced(name, REFUSALS[refused])

    async def leave(self, name: str, writer: WriterIdentity) -> None:
        if self.messages.writers.pop(writer.channel, None) is not None:
            await self._layer.run(lambda: self._leave(name, writer))

    async def _leave(self, name: str, writer: WriterIdentity) -> None:
        store = await self._stores.client_of(name, self._layer.send_until())
        for key in self._lists(store, writer):
            store.pipeline.write(("SREM", key, f"{name} {writer.channel}"), ignore_reply)

    def _list(self, store: Store, name: str, writer: WriterIdentity) -> None:
        """List a stream among those that this process writes. It is written in front of the next call."""
        for key in self._lists(store, writer):
            store.pipeline.write(("SADD", key, f"{name} {writer.channel}"), ignore_reply)
            store.pipeline.write(("EXPIRE", key, WRITING_SECONDS), ignore_reply)

    def _lists(self, store: Store, writer: WriterIdentity) -> list[str]:
        local = split_local(writer.channel)
        assert local is not None
        return [store.keys.writing(mailbox) for mailbox in (local[0], *self._servers)]

    @property
    def _servers(self) -> set[str]:
        return _servers.of(self._layer.address, self._layer.prefix)

    def on_server(self, mailbox: str) -> None:
        """Note that a server has started in this process: its death is that of all writers here."""
        self._servers.add(mailbox)

    async def on_server_stopped(self, mailbox: str) -> None:
        """Note that a server has stopped, so that its end is not that of the writers here."""
        self._servers.discard(mailbox)
        if self.messages.writers:
            with suppress(LayerUnavailable):
                for getting in self._stores.clients():
                    store = await getting
                    await store.pipeline.call("UNLINK", store.keys.writing(mailbox), until=self._layer.send_until())

    def data_may_be_lost(self) -> None:
        """Let all writers give a sign of life, because the store may have lost its data: they begin streams again."""
        for writer in list(self.messages.writers.values()):
            writer.renew_soon()

    # Called by followers.

    async def page(self, name: str, after: Offset, limit: int) -> Page:
        return await self._layer.run(lambda: self._page(name, after, limit))

    async def _page(self, name: str, after: Offset, limit: int) -> Page:
        store = await self._stores.client_of(name, self._layer.send_until())
        reply = await self._call(store, scripts.STREAM_PAGE, name, *after, max(0, limit), PAGE_BYTES)
        if len(reply) < 2:
            if reply:
                self._entries.log_unexpected("odd stream", store.keys.stream_state(name), "it is no state of a stream")
            return Page([], BEGINNING, BEGINNING, StreamState.ABSENT, next=after)
        *numbers, state, error, cancelled, left, reset, begin, content_type, batches = reply
        epoch, first, last, size = map(int, numbers)
        offsets = Offset(epoch, first), Offset(epoch, last)
        if state == b"deleted":
            return Page([], *offsets, StreamState.ABSENT, reset=after != BEGINNING, next=BEGINNING)
        state = StreamState(state.decode())
        items, number, gone = self._read(store.keys.stream(name), epoch, max(int(begin), first - 1), batches, limit)
        if limit > 0 and not batches and number < last:  # Redis has evicted the key
            number, gone = last, True
        is_open = state is StreamState.OPEN
        return Page(
            items,
            *offsets,
            state,
            error.decode(errors="replace") or WRITER_GONE if state is StreamState.FAILED else "",
            cancelled == b"1",
            bool(reset) or gone,
            Offset(epoch, number),
            left / 1000 if is_open else None,
            size,
            content_type.decode(errors="replace"),
        )

    def _read(
        self, place: str, epoch: int, after: int, batches: list[bytes], limit: int
    ) -> tuple[list[tuple[Offset, Any]], int, bool]:
        """Return entries in batches, the number to read on from, and whether entries in front of them are lost.

        A batch that cannot be read ends the page, or is said to be gone if it is the first one.
        """
        items: list[tuple[Offset, Any]] = []
        gone = False
        for entry_id, sealed in zip(batches[::2], batches[1::2], strict=True):
            last = int(entry_id.partition(b"-")[2])
            try:
                unpacked = unpack_items(self._entries.open(place, sealed))
            except ValueError as error:
                if items:
                    break
                self._entries.log_rejected(place, entry_id.decode(), error)
                after, gone = last, True
                continue
            first = last - len(unpacked) + 1
            if first > after + 1:  # the store has lost a batch
                if items:
                    break
                after, gone = first - 1, True
            some = unpacked[after + 1 - first :][: limit - len(items)]
            items += [(Offset(epoch, number), item) for number, item in enumerate(some, after + 1)]
            after += len(some)
            if after < last:
                break
        return items, after, gone

    async def cancel(self, name: str) -> bool:
        channel: bytes | None = await self._layer.run(lambda: self._cancel(name))
        if channel is None:
            return False
        await self.messages.ask_to_stop(channel.decode())
        return True

    async def _cancel(self, name: str) -> Any:
        return await self._call(
            await self._stores.client_of(name, self._layer.send_until()), scripts.STREAM_CANCEL, name
        )

    async def delete(self, name: str) -> bool:
        found = await self._layer.run(lambda: self._delete(name))
        if found is None:
            return False
        epoch, last, channel = found
        await self.messages.fence(channel.decode(), DELETED)
        await self.messages.tell(Broadcast(name, int(epoch), int(last) + 1, state=StreamState.ABSENT))
        return True

    async def _delete(self, name: str) -> Any:
        return await self._call(
            await self._stores.client_of(name, self._layer.send_until()), scripts.STREAM_DELETE, name, DELETED_MS
        )

    async def keep(self, name: str, packed: bytes, limits: StreamLimits, message_id: str) -> tuple[bool, Offset]:
        return await self._layer.run(lambda: self._keep(name, packed, limits, message_id))

    async def _keep(self, name: str, packed: bytes, limits: StreamLimits, message_id: str) -> tuple[bool, Offset]:
        store = await self._stores.client_of(name, self._layer.send_until())
        sealed = self._entries.seal(store.keys.stream(name), packed)
        arguments = message_id, _ms(limits.kept), limits.entries, limits.bytes, sealed, _ms(REMEMBERED_SECONDS)
        is_new, epoch, number = await self._call(store, scripts.STREAM_KEEP, name, *arguments, ids=True)
        return bool(is_new), Offset(int(epoch), int(number))

    # After the death of a process.

    async def end_streams_of(self, mailbox: str) -> None:
        """End the streams that a dead process was writing, and tell their followers.

        Several processes may do so at once: one of them ends each stream. It is called in an event loop that lasts.

        Raises:
            LayerUnavailable: A store cannot be reached.
        """
        ended = 0
        away: LayerUnavailable | None = None
        for getting in self._stores.clients():
            try:
                ended += await self._end_orphans(await getting, mailbox)
            except LayerUnavailable as error:  # the streams at the other stores end all the same
                away = error
        if ended:
            logger.warning("%s has died: its open streams (%d) were ended", mailbox, ended)
        while self._untold:
            broadcast = self._untold.popleft()
            try:
                await self.messages.tell(broadcast)
            except LayerUnavailable:
                self._untold.appendleft(broadcast)
                raise
        if away is not None:
            raise away

    async def _end_orphans(self, store: Store, mailbox: str) -> int:
        """End the streams at one store. Return how many this process has ended."""
        ended = 0
        key = store.keys.writing(mailbox)
        for listed in await store.pipeline.call("SMEMBERS", key):
            try:
                name, channel = listed.decode().split(" ")
                require_stream(name)
                require_channel(channel)
            except (UnicodeDecodeError, ValueError, TypeError):
                self._entries.log_unexpected("odd name", key, f"{listed!r:.200} in it is no stream")
            else:
                ended += await self._end_orphan(store, name, channel)
            await store.pipeline.call("SREM", key, listed)
        return ended

    async def _end_orphan(self, store: Store, name: str, channel: str) -> bool:
        """End a stream whose writer has died. Return whether this process has ended it."""
        ended = await self._call(store, scripts.STREAM_ORPHAN, name, channel, WRITER_GONE)
        if ended is None:
            return False
        epoch, last, grace = map(int, ended)
        self._counts["stream orphan"] += 1
        state, error = (StreamState.OPEN, "") if grace else (StreamState.FAILED, WRITER_GONE)
        left = grace / 1000 if grace else None
        self._untold.append(Broadcast(name, epoch, last + 1, [], state, error, left))
        return True

    async def _call(
        self, store: Store, script: str, name: str, *arguments: str | bytes | int, ids: bool = False
    ) -> Any:
        """Run a script on the keys of a stream. Those that have another type are removed."""
        keys = {store.keys.stream_state(name): "hash", store.keys.stream(name): "stream"}
        if ids:
            keys[store.keys.stream_ids(name)] = "hash"
        until = self._layer.send_until()
        for attempt in range(2):
            try:
                return await store.pipeline.call("EVAL", script, len(keys), *keys, *arguments, until=until)
            except Refused as error:
                if not error.wrong_type or attempt:
                    raise
            for key, kind in keys.items():
                if await store.pipeline.call("EVAL", scripts.DROP_OTHER_TYPE, 1, key, kind, until=until):
                    self._entries.log_unexpected("wrong type", key, f"it was no {kind}, and was removed")
        raise AssertionError("unreachable")


def _ms(seconds: float) -> int:
    return max(round(seconds * 1000), int(seconds > 0))
