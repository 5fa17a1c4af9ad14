"""Reading the mailbox of process-local channels in the event loop that receives its messages.

The background loop of the layer reads the mailbox, so that messages arrive whatever the other event loops do. But a
message that is read there wakes two threads, one after the other, which takes a tenth of a millisecond. So while
messages come often and one event loop receives them, the mailbox is lent to that loop, which reads on a connection of
its own. It gives the mailbox back when no message has come for a while, when it reads an entry that only the background
loop can handle, or when its connection is lost. If it is blocked or has ended, the mailbox is taken back.
"""

from __future__ import annotations

import asyncio
import logging
import time
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from asgibus.layers.errors import LayerUnavailable
from asgibus.layers.redis.client import ReconnectingConnection, RedisConnection, RedisError, background
from asgibus.layers.redis.mailbox import MailboxReader
from asgibus.layers.redis.store import Shard, StoreClient

logger = logging.getLogger("asgibus.layers")

WAIT_SECONDS: Final = 0.05  # without a message, after which the mailbox is given back
OFTEN_SECONDS = 0.02  # between two reads: then the mailbox is lent
ALONE_SECONDS = 1.0  # for which no other event loop has used the channels before that


class Borrower:
    """The connection of one event loop for reading a mailbox that is lent to the loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, shard: Shard, mailbox: str) -> None:
        """Prepare to connect.

        Args:
            loop: The event loop.
            shard: The store of the mailbox.
            mailbox: The mailbox.
        """
        self._loop = loop
        self._shard = shard
        self._name = f"{mailbox}receive"
        self._opening = False
        self._task: asyncio.Task[None] | None = None
        self._client: StoreClient | None = None
        self._link: ReconnectingConnection | None = None
        self._connection: RedisConnection | None = None
        self._reader: MailboxReader | None = None  # has lent the mailbox
        self._reading = False

    # Methods for the background loop.

    @property
    def closed(self) -> bool:
        """Whether the event loop has ended, or has closed its connections. Later it needs another borrower."""
        return self._loop.is_closed() or (self._client is not None and self._client.closed)

    def can_read(self, run_id: str) -> bool:
        """Return whether there is an unused connection to the Redis server with this run id. If not, connect."""
        connection = self._connection
        if connection is None:
            if not self._opening:
                self._opening = self._call(self._open)
            return False
        return not self._reading and not connection.lost.done() and bool(run_id) and connection.run_id == run_id

    def begin(self, reader: MailboxReader) -> bool:
        """Begin to read a mailbox. Return False if the event loop has ended."""
        return self._call(partial(self._begin, reader))

    def _call(self, method: Callable[[], None]) -> bool:
        try:
            self._loop.call_soon_threadsafe(method)
        except RuntimeError:
            return False
        return True

    # Methods for the event loop that reads.

    def _open(self) -> None:
        self._task = background(self._connect(), f"asgibus open {self._name}")

    async def _connect(self) -> None:
        try:
            client = await self._shard.client()
            await client.once(self._name, partial(self._start, client))
        except LayerUnavailable as error:
            logger.debug("%s: the background loop reads on: %s", self._name, error)
            self._opening = False

    async def _start(self, client: StoreClient) -> None:
        link = ReconnectingConnection(client.address, self._name, client.outage, self._on_up, self._on_down)
        self._client, self._link = client, link
        client.on_close = self._close
        link.start()

    async def _close(self) -> None:
        self._on_down()
        if self._link is not None:
            await self._link.close()

    def _on_up(self, connection: RedisConnection) -> None:
        self._connection = connection

    def _on_down(self) -> None:
        self._connection = None
        self._reading = False
        if self._reader is not None:
            self._reader.give_back(self)

    def _begin(self, reader: MailboxReader) -> None:
        self._reader = reader
        if self._connection is None or self._reading:
            reader.give_back(self)
        else:
            self._read(reader, self._connection)

    def _read(self, reader: MailboxReader, connection: RedisConnection) -> None:
        self._reading = True
        reader.write_read(connection, WAIT_SECONDS, self._on_read)

    def _on_read(self, reply: Any) -> None:
        reader, connection = self._reader, self._connection
        assert reader is not None
        if isinstance(reply, RedisError) or not reply or connection is None:
            self._reading = False
            reader.give_back(self)
        elif reader.handle_lent(self, reply[0][1]):
            # After the receivers that were woken: what they send is written first.
            self._loop.call_soon(self._read_on, reader, connection)
        else:
            self._reading = False

    def _read_on(self, reader: MailboxReader, connection: RedisConnection) -> None:
        if self._connection is connection:
            self._read(reader, connection)


class Borrowers:
    """The event loops that use the process-local channels, and their connections for reading the mailbox."""

    def __init__(self) -> None:
        self._last: weakref.ref[asyncio.AbstractEventLoop] | None = None  # used the channels last
        self._since = 0.0  # when it did so first, by the monotonic clock
        self._read_at = 0.0  # when the background loop has read messages last
        self._all: dict[asyncio.AbstractEventLoop, Borrower] = {}

    def note(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Note that an event loop uses the channels. Return False if it was the last one already."""
        if self._last is not None and self._last() is loop:
            return False
        self._last = weakref.ref(loop)
        self._since = time.monotonic()
        return True

    def find(self, shard: Shard, mailbox: str, run_id: str) -> Borrower | None:
        """Return who is to read the mailbox on: see `MailboxReader`. Call it in the background loop, after each read.

        Args:
            shard: The store of the mailbox.
            mailbox: The mailbox.
            run_id: The run id of the Redis server.
        """
        now = time.monotonic()
        often, self._read_at = now - self._read_at < OFTEN_SECONDS, now
        loop = self._last() if self._last is not None else None
        if not often or now - self._since < ALONE_SECONDS or loop is None or loop is asyncio.get_running_loop():
            return None
        borrower = self._all.get(loop)
        if borrower is None or borrower.closed:
            self._all = {other: each for other, each in self._all.items() if not each.closed}
            borrower = self._all[loop] = Borrower(loop, shard, mailbox)
        return borrower if borrower.can_read(run_id) else None
