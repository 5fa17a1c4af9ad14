"""The writer of a stream."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Any, Final, Self

import anyio

from asgibus.layers.errors import LayerUnavailable, WriterFenced
from asgibus.layers.settings import StreamLimits
from asgibus.layers.streams.batches import BATCH_BYTES, Batcher
from asgibus.layers.streams.broadcaster import Broadcaster
from asgibus.layers.streams.identity import SIGNS, WRITER_SECONDS, WriterIdentity
from asgibus.layers.streams.messages import CANCELLED, FENCED
from asgibus.layers.streams.offsets import Offset
from asgibus.layers.streams.page import Broadcast, StreamState
from asgibus.layers.streams.redelivery import redelivery
from asgibus.layers.streams.store import Batch, StreamStore

logger = logging.getLogger("asgibus.layers")

UNWRITTEN_BYTES: Final = 256 * 1024  # of entries that wait for the store: further calls of `append` wait
UNINTERRUPTED: Final = 100  # calls of `append` in a row, after which other tasks have a turn
TAIL_BYTES: Final = 32 * 1024  # of the last batches, which are stored again if the store loses its data
RETRY_SECONDS = 0.5  # until a write is tried again for which the store was away
GRACE_SECONDS = 30.0  # for a message to be delivered again after its worker has died


class StreamWriter:
    """The only writer of a stream, as an async context manager: `Stream.writer` makes it.

    Leaving the context ends the stream. If an exception leaves it, the stream has failed: with the type of the
    exception, and without its text. In the handler of a background message that will be delivered again, the stream
    stays open for the writer of the next delivery instead.
    """

    def __init__(
        self,
        store: StreamStore,
        name: str,
        limits: StreamLimits,
        restart: bool,
        wait: float,
        content_type: str = "",
    ) -> None:
        """Prepare to write; entering the context begins.

        Args:
            store: The storage.
            name: The stream.
            limits: What the stream keeps.
            restart: Whether an open stream is begun anew.
            wait: Seconds that a call waits for a store that is away.
            content_type: The content type for HTTP clients; empty for that of the writer before.
        """
        self._store = store
        self._name = name
        self._identity = WriterIdentity("", limits, self._renew_soon, content_type=content_type)
        self._restart = restart
        self._wait = wait
        self._stored = 0  # the number of the newest stored entry
        self._batcher = Batcher(0)
        self._fenced: WriterFenced | None = None
        self._cancelled = asyncio.Event()
        self._added = asyncio.Event()
        self._changed = asyncio.Event()  # something was stored, or the writer is fenced
        self._tasks: list[asyncio.Task[None]] = []
        self._due = asyncio.Event()  # a sign of life, because the store may have lost its data
        self._tail: deque[Batch] = deque()  # the last batches
        self._tail_size = 0
        self._broadcaster: Broadcaster
        self._has_left = False
        self._problem = ""  # why the last batch is not stored yet
        self._hurried = 0  # the number of the last entry that waits for no others
        self._loop: asyncio.AbstractEventLoop

    @property
    def cancelled(self) -> bool:
        """Whether somebody has called `Stream.cancel`."""
        return self._cancelled.is_set()

    @property
    def offset(self) -> str:
        """The offset of the newest entry, stored or not."""
        return str(Offset(self._identity.epoch, self._batcher.last))

    async def wait_cancelled(self) -> None:
        """Wait until somebody calls `Stream.cancel`."""
        await self._cancelled.wait()

    async def append(self, item: Any) -> str:
        """Append an entry, which is stored within 20 ms. Wait while 256 KiB of entries are not stored yet.

        Args:
            item: What msgpack knows: None, bool, integers of 64 bits, floats, str, bytes, lists, dicts.

        Returns:
            The offset of the entry.

        Raises:
            TypeError: The item holds another type.
            EntryTooLarge: The packed item is larger than 64 KiB.
            WriterFenced: Another writer has begun, or the stream was ended or deleted.
            LayerUnavailable: The store has been away for so long that there is no room for further entries.
        """
        self._check()
        if self._batcher.size >= UNWRITTEN_BYTES:
            await self._wait_until(lambda: self._batcher.size < UNWRITTEN_BYTES)
        number = self._batcher.add(item)
        if len(self._batcher) == 1 or self._batcher.size >= BATCH_BYTES:
            self._added.set()
        if not number % UNINTERRUPTED:
            await asyncio.sleep(0)  # a writer in a loop must not keep its readers from running
        return str(Offset(self._identity.epoch, number))

    async def flush(self) -> None:
        """Wait until all entries are stored.

        Raises:
            WriterFenced: Another writer has begun, or the stream was ended or deleted.
            LayerUnavailable: The store could not be reached in time. The entries still wait for it.
        """
        self._check()
        self._hurried = last = self._batcher.last
        self._added.set()
        await self._wait_until(lambda: self._stored >= last)

    async def __aenter__(self) -> Self:
        if self._tasks:
            raise RuntimeError("a writer is entered once: call Stream.writer again")
        try:
            await to_its_end(self._begin())
        except asyncio.CancelledError as error:
            if self._tasks:  # begun already
                await self.__aexit__(type(error), error, None)
            raise
        return self

    async def _begin(self) -> None:
        """Begin the stream, and the tasks that write it."""
        self._loop = asyncio.get_running_loop()
        identity = self._identity
        identity.channel = await self._store.messages.new_channel()
        identity.grace = redelivery.get().seconds()
        page = await self._store.begin(self._name, identity, restart=self._restart)
        self._stored = page.last.number
        self._batcher = Batcher(self._stored)
        if page.cancelled:
            self._cancelled.set()
        left = identity.silence if identity.silence < WRITER_SECONDS else None
        self._broadcaster = Broadcaster(self._store.messages, self._name, identity.epoch, self._stored, left)
        self._broadcaster.hint()
        for work in (self._write(), self._broadcaster.run(), self._listen(), self._renew()):
            self._tasks.append(asyncio.create_task(work, name=f"stream {self._name}"))

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        problem: Exception | None = None
        try:  # a reader must learn of the end of a writer that is cancelled, too
            await to_its_end(self._leave(error))
        except (WriterFenced, LayerUnavailable) as found:
            problem = found
        self._has_left = True
        if problem is None:
            return
        if kind is None:
            raise problem
        if problem is not error:
            # A process that stops cancels writers that have been replaced, and may not know of that: nothing is lost.
            replaced = isinstance(problem, WriterFenced) and isinstance(error, asyncio.CancelledError)
            level = logging.INFO if replaced else logging.WARNING
            logger.log(level, "stream %r: its end was not written: %s", self._name, problem)

    async def _leave(self, error: BaseException | None) -> None:
        """End the stream, and the tasks that write it."""
        try:
            await self._finish(error)
        finally:
            await self._stop()
            with suppress(LayerUnavailable):
                await self._store.leave(self._name, self._identity)

    async def _finish(self, error: BaseException | None) -> None:
        """Store what waits, and end the stream."""
        await self.flush()
        identity, last = self._identity, self._batcher.last
        if error is None:
            state, text, grace = StreamState.ENDED, "", 0.0
        else:
            state, text, grace = StreamState.FAILED, type(error).__name__, redelivery.get().seconds()
            if isinstance(error, asyncio.CancelledError):
                text = "the writer was stopped"
        await self._store.finish(self._name, identity, last, state, text, grace=grace, tail=list(self._tail))
        await self._stop()
        if grace:
            redelivery.get().add(partial(self._fail, text))
        try:
            if grace:
                await self._broadcaster.send(left=grace)
            else:
                await self._broadcaster.send(state, text)
        except LayerUnavailable as problem:  # they look again when they have heard nothing for a minute
            logger.warning("stream %r: its followers were not told of its end: %s", self._name, problem)

    async def _fail(self, text: str) -> None:
        """Fail the stream, which was left open for the next delivery of a message: there will be none."""
        last = self._batcher.last
        await self._store.finish(self._name, self._identity, last, StreamState.FAILED, text, tail=list(self._tail))
        broadcast = Broadcast(self._name, self._identity.epoch, last + 1, [], StreamState.FAILED, text)
        await self._store.messages.tell(broadcast)

    async def _stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)

    def _check(self) -> None:
        if self._fenced is not None:
            raise self._fenced
        if not self._tasks or self._has_left:
            raise RuntimeError("a writer is used inside of its context: async with stream.writer() as out")

    async def _wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait until something is stored. Raises LayerUnavailable, or WriterFenced."""
        try:
            async with asyncio.timeout(self._wait):
                while not condition():
                    self._changed.clear()
                    await self._changed.wait()
                    self._check()
        except TimeoutError:
            why = self._problem or "the store did not answer"
            raise LayerUnavailable(f"entries of the stream {self._name!r} could not be stored in time: {why}") from None

    def _fence(self, error: WriterFenced) -> None:
        self._fenced = self._fenced or error
        self._changed.set()

    async def _write(self) -> None:
        """Store batches and tell the followers, until the writer is fenced."""
        clock = asyncio.get_running_loop().time
        while True:
            self._added.clear()
            due_in = self._batcher.due_in(clock())
            if due_in is None:
                await self._added.wait()
                continue
            if due_in and self._stored >= self._hurried:
                with suppress(TimeoutError):
                    async with asyncio.timeout(due_in):
                        await self._added.wait()
                continue
            batch = self._batcher.take(clock())
            try:
                cancelled = await self._store_batch(batch)
            except WriterFenced as error:
                self._fence(error)
                return
            self._stored = batch.last
            self._problem = ""
            self._changed.set()
            if cancelled:
                self._cancelled.set()
            self._broadcaster.add(batch)
            self._keep(batch)

    async def _store_batch(self, batch: Batch) -> bool:
        while True:
            try:
                return await self._store.append(self._name, self._identity, batch, list(self._tail))
            except LayerUnavailable as error:
                self._problem = str(error)
                logger.debug("stream %r: %s; trying again", self._name, error)
            await asyncio.sleep(RETRY_SECONDS)

    def _keep(self, batch: Batch) -> None:
        """Keep the last batches, to store them again if the store loses them."""
        self._tail.append(batch)
        self._tail_size += len(batch.packed)
        while self._tail_size > TAIL_BYTES:
            self._tail_size -= len(self._tail.popleft().packed)

    async def _listen(self) -> None:
        """Handle messages for this writer."""
        while True:
            try:
                message = await self._store.messages.receive(self._identity.channel)
            except LayerUnavailable:
                await asyncio.sleep(RETRY_SECONDS)
                continue
            if message.get("type") == CANCELLED:
                self._cancelled.set()
            elif message.get("type") == FENCED:
                self._fence(WriterFenced(self._name, str(message.get("why"))))

    def _renew_soon(self) -> None:
        with suppress(RuntimeError):  # the event loop was closed
            self._loop.call_soon_threadsafe(self._due.set)

    async def _renew(self) -> None:
        """Give signs of life."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._identity.silence / SIGNS):
                    await self._due.wait()
            was_due = self._due.is_set()
            self._due.clear()
            try:
                if await self._store.renew(self._name, self._identity, self._stored, list(self._tail)):
                    self._cancelled.set()
            except WriterFenced as error:
                self._fence(error)
                return
            except LayerUnavailable as problem:
                logger.debug("stream %r: %s; trying again", self._name, problem)
                await asyncio.sleep(RETRY_SECONDS)
                self._due.set()
                continue
            if was_due:
                self._broadcaster.hint()


async def to_its_end(work: Coroutine[Any, Any, None]) -> None:
    """Await work that must not be left half done. A cancellation meanwhile is raised when the work has ended."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    with anyio.CancelScope(shield=True):
        while not task.done():
            try:
                await asyncio.wait([task])
            except asyncio.CancelledError as error:  # of asyncio, which knows no shield
                cancelled = error
    if cancelled is None:
        await task
        return
    if not task.cancelled() and (problem := task.exception()) is not None:
        logger.warning("a writer or reader of a stream was stopped, and failed: %s", problem)
    raise cancelled
