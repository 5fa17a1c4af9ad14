"""A stream of a layer, as apps use it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from dataclasses import replace
from typing import Any, Final

from asgibus.layers.errors import LayerUnavailable, StreamError, StreamReset
from asgibus.layers.names import require_any_stream
from asgibus.layers.settings import StreamLimits, require_content_type, require_kept
from asgibus.layers.streams.offsets import BEGINNING, Offset, parse_offset
from asgibus.layers.streams.page import ABSENT_SECONDS, Broadcast, Page, StreamState, parse_broadcast
from asgibus.layers.streams.store import StreamStore
from asgibus.layers.streams.writer import StreamWriter, to_its_end

PAGE_ENTRIES: Final = 500  # of one read
LOOK_SECONDS = 60.0  # without a broadcast, after which a reader looks whether it has missed one
LOOK_SOON_SECONDS = 1.0  # after a broadcast of what the reader has: the store may have lost it
RETRY_SECONDS = 0.5  # until a reader tries again to receive, or to renew its membership
WAITING: Final = 64  # broadcasts that wait for a reader: a slower one reads pages


class Stream:
    """A named channel whose entries are kept and numbered: written once, read by any number of readers, from any point.

    `ChannelLayer.stream` makes it, without IO. A stream is a cache beside a database, and no database: it has limits,
    and an empty restart of the store loses it.
    """

    def __init__(self, store: StreamStore, name: str, limits: StreamLimits, wait: float) -> None:
        """Use a stream.

        Args:
            store: The storage.
            name: The name.
            limits: What is kept; for writers.
            wait: Seconds that a call waits for a store that is away.

        Raises:
            TypeError: The name, or the limits, are not valid.
        """
        if not isinstance(limits, StreamLimits):
            raise TypeError(f"the limits of a stream are StreamLimits(…), not {limits!r:.50}")
        self._store = store
        self.name = require_any_stream(name)
        self.limits = limits
        self._wait = wait

    def shares_store_with(self, other: Stream) -> bool:
        """Return whether another stream is one of the same layer."""
        return self._store is other._store

    def writer(self, ttl: float | None = None, restart: bool = False, *, content_type: str = "") -> StreamWriter:
        """Return a writer: `async with stream.writer() as out`.

        A stream that is over is begun anew, with a new epoch. An open one is continued; its writer is fenced.

        Args:
            ttl: Seconds for which the stream is kept after its end, instead of those of the limits.
            restart: Whether an open stream is begun anew, too. Readers get StreamReset.
            content_type: The type of the entries for clients that read them over HTTP: see docs/durable-streams.md. By
                default they are values of JSON.

        Raises:
            ValueError: The time, or the content type, is not valid.
        """
        if ":" in self.name:
            raise ValueError(f"{self.name!r} has the kept messages of a group: write it with group_send and keep")
        limits = self.limits if ttl is None else replace(self.limits, kept=require_kept(ttl))
        content_type = require_content_type(content_type)
        return StreamWriter(self._store, self.name, limits, restart, self._wait, content_type)

    async def read(self, after: str | Offset | None = None) -> AsyncGenerator[tuple[str, Any], None]:
        """Yield the entries behind an offset, those that are kept and then those that are appended, until the end.

        A reader may come before the writer: it waits.

        Args:
            after: The offset of an entry that was read. None and `"0"` are the beginning.

        Yields:
            The offset of each entry, and the item.

        Raises:
            ValueError: `after` is no offset.
            StreamReset: Entries behind `after` are not kept any more, or the stream was begun anew or deleted. It says
                from which offset reading is possible.
            StreamError: The stream has failed: its writer has raised an error, or is gone.
            LayerUnavailable: The store could not be reached in time.
        """
        offset = parse_offset(after)
        async with aclosing(_Reader(self._store, self.name, offset).read()) as entries:
            async for place, item in entries:
                yield str(place), item

    async def page(self, after: str | Offset | None = None, limit: int = PAGE_ENTRIES) -> Page:
        """Return the entries behind an offset, and the state of the stream.

        Args:
            after: The offset of an entry. None and `"0"` are the beginning.
            limit: The largest number of entries. There may be fewer, even if more are kept: see `Page.caught_up`.

        Raises:
            ValueError: `after` is no offset.
            LayerUnavailable: The store could not be reached in time.
        """
        return await self._store.page(self.name, parse_offset(after), limit)

    async def last(self) -> str | None:
        """Return the offset of the newest entry, or None if there is none. Raises LayerUnavailable."""
        page = await self.info()
        return str(page.last) if page.last.number and page.state is not StreamState.ABSENT else None

    async def info(self) -> Page:
        """Return the state of the stream: a page without entries. Raises LayerUnavailable."""
        return await self._store.page(self.name, BEGINNING, 0)

    async def cancel(self) -> bool:
        """Ask the writer to stop: a stop button. The writer decides; `StreamWriter.cancelled` tells it.

        Returns:
            Whether the stream is open.

        Raises:
            LayerUnavailable: The store could not be reached in time.
        """
        return await self._store.cancel(self.name)

    async def delete(self) -> bool:
        """Delete the stream. Its writer is fenced, and its readers get StreamReset.

        Returns:
            Whether there was one.

        Raises:
            LayerUnavailable: The store could not be reached in time.
        """
        return await self._store.delete(self.name)


class _Reader:
    """One call of `Stream.read`."""

    def __init__(self, store: StreamStore, name: str, offset: Offset) -> None:
        self._store = store
        self._name = name
        self._offset = offset
        self._broadcasts: deque[Broadcast] = deque(maxlen=WAITING)
        self._told = asyncio.Event()
        self._channel = ""

    async def read(self) -> AsyncGenerator[tuple[Offset, Any], None]:
        """Yield entries until the end."""
        self._channel = await self._store.messages.new_channel()
        tasks: list[asyncio.Task[None]] = []
        try:
            renew_in = await self._store.messages.follow(self._name, self._channel)
            works = self._receive(), self._renew(renew_in)
            tasks += (asyncio.create_task(work, name=f"stream {self._name} reader") for work in works)
            async with aclosing(self._pages()) as entries:
                async for entry in entries:
                    yield entry
        finally:
            for task in tasks:
                task.cancel()
            with suppress(LayerUnavailable):  # a membership that is left behind would fill the channel
                await to_its_end(self._store.messages.unfollow(self._name, self._channel))

    async def _renew(self, seconds: float) -> None:
        """Renew the membership in time."""
        while True:
            await asyncio.sleep(seconds)
            try:
                seconds = await self._store.messages.follow(self._name, self._channel)
            except LayerUnavailable:
                seconds = RETRY_SECONDS

    async def _receive(self) -> None:
        while True:
            try:
                message = await self._store.messages.receive(self._channel)
                self._broadcasts.append(parse_broadcast(message))
            except ValueError:
                continue
            except LayerUnavailable:
                await asyncio.sleep(RETRY_SECONDS)
                continue
            self._told.set()

    async def _pages(self) -> AsyncGenerator[tuple[Offset, Any], None]:
        clock = asyncio.get_running_loop().time
        absent_since: float | None = None
        while True:
            page = await self._store.page(self._name, self._offset, PAGE_ENTRIES)
            if page.reset:
                why = "was deleted" if page.state is StreamState.ABSENT else self._why_reset(page)
                raise StreamReset(self._name, str(page.begin), why)
            for offset, item in page.items:
                self._offset = offset
                yield offset, item
            if not page.caught_up:
                continue
            if page.over:
                self._end(page.state, page.error)
                return
            self._offset = page.next
            look_at = clock() + _look_in(page.left)
            if page.state is not StreamState.ABSENT or self._offset == BEGINNING:
                absent_since = None
            elif absent_since is None:
                absent_since = clock()
                look_at = absent_since + ABSENT_SECONDS
            elif clock() - absent_since >= ABSENT_SECONDS:
                raise StreamReset(self._name, "0", "is not there any more")
            gap = False
            while not gap:
                try:
                    async with asyncio.timeout_at(look_at):
                        await self._told.wait()
                except TimeoutError:
                    break
                while self._broadcasts and not gap:
                    broadcast = self._broadcasts.popleft()
                    if broadcast.continues(self._offset):
                        for number, item in enumerate(broadcast.items, broadcast.first):
                            self._offset = Offset(broadcast.epoch, number)
                            yield self._offset, item
                        if broadcast.state.is_over:
                            self._end(broadcast.state, broadcast.error)
                            return
                        look_at = clock() + _look_in(broadcast.left)
                        absent_since = None
                    elif broadcast.next > self._offset or broadcast.state is not StreamState.OPEN:
                        gap = True
                    else:
                        look_at = min(look_at, clock() + LOOK_SOON_SECONDS)
                if not gap:
                    self._told.clear()

    def _end(self, state: StreamState, error: str) -> None:
        """Raise StreamError if the stream has failed."""
        if state is StreamState.FAILED:
            raise StreamError(self._name, error)

    def _why_reset(self, page: Page) -> str:
        if self._offset == BEGINNING or self._offset.epoch == page.first.epoch:
            return "has lost the entries that were to be read next"
        return "was begun anew"


def _look_in(left: float | None) -> float:
    """Return in how many seconds a reader looks if there is no broadcast, of a stream that fails in `left` seconds."""
    return LOOK_SECONDS if left is None else min(LOOK_SECONDS, left)
