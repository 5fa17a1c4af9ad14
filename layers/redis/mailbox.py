"""Mailboxes: reading that of this process, and sending to those of others.

A mailbox is a stream, read with a cursor and trimmed by its reader. The cursor is kept in the process, so a dropped
connection loses nothing: the next one reads on. If the stream ends before the cursor, since a replica has taken over
that lacks entries which were read here, the reader continues from that end. An entry that is damaged, or makes its
handler fail, is counted, logged and skipped.

The reader may lend the cursor to another event loop: see `borrower`.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, Final, Protocol

from asgibus.layers.contract import Frame
from asgibus.layers.errors import LayerUnavailable
from asgibus.layers.frames import FIRST_PROTOCOL_KIND, LOCAL_MESSAGES
from asgibus.layers.names import has_channels
from asgibus.layers.redis.client import (
    BLOCK_SECONDS,
    OnReply,
    ReconnectingConnection,
    RedisConnection,
    RedisError,
    pack_command,
    pack_command_with,
)
from asgibus.layers.redis.keys import Keys
from asgibus.layers.redis.pipeline import PAYLOAD_VERSION, Pipeline, Store
from asgibus.layers.versions import PAYLOAD

logger = logging.getLogger("asgibus.layers")

READ_ENTRIES: Final = 64  # entries that a read returns at most; each is up to a mebibyte, and mostly far smaller
TRIM_ENTRIES: Final = 256  # entries read before the stream is trimmed, which saves a command per read
BEGINNING: Final = b"0-0"
UNBLOCK_SECONDS = 0.05  # until a read that was not blocked yet when it should have been ended is ended again
TRIM_BYTES: Final = 1024 * 1024  # bytes read before the stream is trimmed, so that large frames do not pile up in Redis

# A sender reads the state of a mailbox again when it is that old, and earlier after a quarter of the capacity of a
# channel, or before it refuses to send.
STATE_SECONDS = 0.25
STATES_PER_CAPACITY = 4
REFUSE_SECONDS = 0.01
MAILBOX_BYTES = 64 * 1024 * 1024  # that may wait for a living process: more would be taken from all others
KNOWN_MAILBOXES = 1024  # whose states a sender keeps

LOAN_SECONDS = 0.1  # between two looks at whether a borrower still reads; longer than its reads wait

OnBatch = Callable[[str, Sequence[Frame], float], None]
Send = Callable[[str, Frame, float], Awaitable[bool]]


class Borrower(Protocol):
    """Reads a mailbox in another event loop, as long as it has the cursor: see `borrower.Borrower`."""

    def begin(self, reader: MailboxReader) -> bool:
        """Begin to read. Return False if that event loop has ended. Called in the event loop of `reader`."""


FindBorrower = Callable[[str], Borrower | None]


class MailboxReader:
    """Read one mailbox, in the callbacks of its connection."""

    def __init__(
        self,
        store: Store,
        mailbox: str,
        on_batch: OnBatch,
        on_wrong_type: Callable[[], None],
        on_idle: Callable[[float], None],
        find_borrower: FindBorrower | None = None,
    ) -> None:
        """Prepare to read; `open` connects.

        Args:
            store: The store of the mailbox.
            mailbox: The mailbox.
            on_batch: Called for each entry, with its sender, its frames, and when it was written, in seconds by Redis's
                clock.
            on_wrong_type: Called when the key of the mailbox has another type.
            on_idle: Called with a time of the monotonic clock when everything written before it has been read.
            find_borrower: Called with the run id of the Redis server after each read that found entries. Returns who is
                to read on, or None if this reader is.
        """
        self._loop = asyncio.get_running_loop()
        self._on_idle = on_idle
        self._asked = 0.0  # when the current read was written
        self._on_wrong_type = on_wrong_type
        self._key = store.keys.mailbox(mailbox)
        self._codec = store.entries
        self._counts = store.outage.counts
        self._on_batch = on_batch
        self._link = ReconnectingConnection(store.address, f"{mailbox}mailbox", store.outage, self._on_up)
        self._connection: RedisConnection | None = None
        self._cursor = BEGINNING
        self._reading = False
        self._held = False  # nothing is read now
        self._begun = asyncio.Event()  # set once this connection reads, with a valid cursor
        self._stale = False  # the current read is of a stream that does not exist any more
        self._ended: asyncio.Future[None] | None = None  # done when a stale read has ended
        self._entries = 0
        self._bytes = 0
        self._find_borrower = find_borrower
        self._lock = threading.Lock()  # held while a borrower handles entries, and while a loan ends
        self._borrower: Borrower | None = None  # has the cursor
        self._loan_reads = 0  # of borrowers
        self._look: asyncio.TimerHandle | None = None

    async def open(self) -> None:
        """Connect and begin to read. Raises LayerUnavailable."""
        await self._link.open()

    async def close(self) -> None:
        """Stop reading."""
        self._end_loan()
        await self._link.close()

    @property
    def cursor(self) -> bytes:
        """The id of the last entry that was handled."""
        return self._cursor

    async def open_at(self, cursor: bytes) -> None:
        """Connect, to read behind that entry from the call of `start` on. Raises LayerUnavailable."""
        self._cursor = cursor
        self._held = True
        await self._link.open()

    async def stop(self) -> None:
        """Stop reading until `start`."""
        self._held = True
        self._end_loan()
        await self._link.close()
        self._connection = None
        self._reading = False

    def start(self) -> None:
        """Read, after `open_at` or `stop`."""
        if not self._held:
            return
        self._held = False
        if self._link.connection is not None:
            self._on_up(self._link.connection)
        else:
            self._link.start()

    async def restart(self, unblock: Callable[[int], Awaitable[object]]) -> None:
        """Read from the beginning, since the stream has vanished. Await this before the stream is created again.

        It returns when no read of the old stream is under way, so that entries of the new stream are read once.

        Args:
            unblock: Ends the blocked read of the client with the given id.
        """
        self._take_back()
        self._cursor = BEGINNING
        self._stale = self._reading
        while self._stale and self._connection is not None and not self._connection.lost.done():
            self._ended = asyncio.get_running_loop().create_future()
            await unblock(self._connection.client_id)
            await asyncio.wait([self._ended], timeout=UNBLOCK_SECONDS)

    async def wait_until_reading(self, run_id: str, until: float) -> None:
        """Wait until the mailbox is read at the Redis server with this run id, so that no later entry is missed.

        Raises LayerUnavailable at the time `until`.
        """
        try:
            async with asyncio.timeout_at(until):
                while not self._begun.is_set() or self._connection is None or self._connection.run_id != run_id:
                    self._begun.clear()
                    await self._begun.wait()
        except TimeoutError:
            raise LayerUnavailable("the mailbox cannot be read yet") from None

    def drop_unless(self, run_id: str) -> None:
        """Drop the connection unless it is to the Redis server with this run id."""
        self._take_back()
        self._link.drop_unless(run_id)

    def _on_up(self, connection: RedisConnection) -> None:
        if self._held:
            return
        self._end_loan()
        self._connection = connection
        self._reading = self._stale = False
        self._begun.clear()
        connection.write(pack_command(("XINFO", "STREAM", self._key)), (self._on_stream_info,))

    def _on_stream_info(self, reply: Any) -> None:
        assert self._connection is not None
        if not isinstance(reply, RedisError):  # without a stream, the cursor stays
            last = reply[reply.index(b"last-generated-id") + 1]
            if _order(last) < _order(self._cursor):
                self._cursor = last
        self._read(self._connection)
        self._begun.set()

    def _read(self, connection: RedisConnection) -> None:
        self._reading = True
        self._asked = time.monotonic()
        self.write_read(connection, BLOCK_SECONDS, self._on_read)

    def write_read(self, connection: RedisConnection, seconds: float, on_read: OnReply) -> None:
        """Write a read from the cursor on, which waits for so long, and trim what was read before now and then."""
        milliseconds = round(seconds * 1000)
        read = pack_command_with(
            ("XREAD", "COUNT", READ_ENTRIES, "BLOCK", milliseconds, "STREAMS", self._key), self._cursor
        )
        if self._entries >= TRIM_ENTRIES or self._bytes >= TRIM_BYTES:
            self._entries = self._bytes = 0

            def on_trimmed(reply: Any) -> None:
                if isinstance(reply, RedisError):  # the server may be a replica now
                    connection.abort(f"trimming the mailbox was refused: {reply}")

            connection.write(pack_command(("XTRIM", self._key, "MINID", self._cursor)) + read, (on_trimmed, on_read))
        else:
            connection.write(read, (on_read,))

    def _on_read(self, reply: Any) -> None:
        connection = self._connection
        assert connection is not None
        if isinstance(reply, RedisError):
            connection.abort(f"reading the mailbox was refused: {reply}")  # a new connection tries again, after a pause
            if str(reply).startswith("WRONGTYPE"):
                self._on_wrong_type()
            return
        entries = reply[0][1] if reply else ()
        self._handle(entries, lent=False)
        if not entries:
            self._on_idle(self._asked)
        self._stale = self._reading = False
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(None)
        if not (entries and self._lend(connection)):
            self._read(connection)  # after the entries are handled, so that clients get their events first

    def _handle(self, entries: Sequence[Any], *, lent: bool) -> bool:
        """Handle entries in order, and move the cursor behind each.

        Args:
            entries: The entries.
            lent: Whether a borrower has the cursor.

        Returns:
            False if an entry cannot be handled by a borrower. The cursor is before that entry.
        """
        for entry_id, fields in entries:
            try:
                version, sender, frames, *_ = self._codec.unpack(self._key, fields[1])  # later releases may add more
                if not isinstance(sender, str):
                    raise ValueError(f"its sender is not a name: {sender!r:.100}")
                if version != PAYLOAD_VERSION and not PAYLOAD.reads(version):
                    raise PAYLOAD.refuse(version, sender or "whoever wrote them")
            except (ValueError, TypeError) as error:  # TypeError: it does not have three parts
                if lent:
                    return False
                self._advance(entry_id, fields)
                self._codec.log_rejected(f"mailbox {self._key}", entry_id.decode(), error)
                continue
            if lent and not _is_local_message(sender, frames):
                return False
            self._advance(entry_id, fields)
            try:
                sent = _order(entry_id)[0] / 1000
                self._on_batch(sender, frames, sent)
            except Exception as error:  # the next entries are still read
                if _is_valid(sender, frames):  # a fault of the handler
                    self._counts["damaged entry"] += 1
                    logger.exception("mailbox %s: handling entry %s failed", self._key, entry_id.decode())
                else:
                    self._codec.log_rejected(f"mailbox {self._key}", entry_id.decode(), error)
        return True

    def _advance(self, entry_id: bytes, fields: Sequence[bytes]) -> None:
        """Move the cursor behind an entry."""
        if not self._stale:
            self._cursor = entry_id
        self._entries += 1
        self._bytes += len(fields[1])

    # The loan of the cursor. Methods that a borrower calls are called in its event loop.

    def _lend(self, connection: RedisConnection) -> bool:
        """Let another event loop read on, if one is found. Nothing is being read here now."""
        borrower = self._find_borrower(connection.run_id) if self._find_borrower is not None else None
        if borrower is None:
            return False
        self._borrower = borrower
        if not borrower.begin(self):
            self._borrower = None
            return False
        if self._look is None:
            self._look = self._loop.call_later(LOAN_SECONDS, self._look_after_loan, self._loan_reads)
        return True

    def _look_after_loan(self, reads: int) -> None:
        """Take the cursor back from a borrower that has read nothing since the last look: its loop may be blocked."""
        self._look = None
        if self._borrower is None:
            return
        if self._loan_reads == reads:
            self._take_back()
        else:
            self._look = self._loop.call_later(LOAN_SECONDS, self._look_after_loan, self._loan_reads)

    def _take_back(self) -> None:
        """Read here again, if the cursor is lent."""
        if self._end_loan():
            self._resume()

    def _end_loan(self) -> bool:
        """Let a borrower handle no more entries. Return whether there was one."""
        with self._lock:
            borrower, self._borrower = self._borrower, None
        return borrower is not None

    def _resume(self) -> None:
        connection = self._connection
        if self._borrower is None and not self._reading and connection is not None and not connection.lost.done():
            self._read(connection)

    def handle_lent(self, borrower: Borrower, entries: Sequence[Any]) -> bool:
        """Handle the entries that a borrower has read, as far as that is possible in any event loop.

        Returns:
            Whether the borrower may read on.
        """
        with self._lock:
            if self._borrower is not borrower:
                return False
            self._loan_reads += 1
            if self._handle(entries, lent=True):
                return True
        self.give_back(borrower)
        return False

    def give_back(self, borrower: Borrower) -> None:
        """End the loan of a borrower, unless it has ended."""
        with self._lock:
            if self._borrower is not borrower:
                return
            self._borrower = None
        with suppress(RuntimeError):  # that event loop has ended
            self._loop.call_soon_threadsafe(self._resume)


class _MailboxState:
    """The state of a mailbox, as its process has published it.

    Attributes:
        full: The local parts of its full channels.
        size: The bytes that wait in it.
        read: When the state was read, by the event loop's clock.
        sent: How many messages were sent there since.
        replies: How many replies are outstanding.
    """

    __slots__ = ("full", "read", "replies", "sent", "size")

    def __init__(self) -> None:
        self.full: frozenset[bytes] = frozenset()
        self.size = 0
        self.read = -math.inf
        self.sent = 0
        self.replies = 0

    def refuses(self, parts: Sequence[str]) -> bool:
        """Return whether a message would reach none of these channels."""
        return self.size > MAILBOX_BYTES or (len(parts) == 1 and parts[0].encode() in self.full)


class MailboxSender:
    """Sends to the mailboxes of other processes, for one event loop and one store."""

    def __init__(self, pipeline: Pipeline, keys: Keys, send: Send) -> None:
        """Prepare to send.

        Args:
            pipeline: Writes to the store.
            keys: The names of keys.
            send: Writes a frame to a mailbox, and gives up at a time of the event loop's clock. Returns False if the
                process of the mailbox is gone.
        """
        self._loop = asyncio.get_running_loop()
        self._pipeline = pipeline
        self._keys = keys
        self._write = send
        self._states: dict[str, _MailboxState] = {}

    async def send(
        self, mailbox: str, parts: Sequence[str], message: bytes, capacity: int, until: float, delay: float = 0.0
    ) -> bool | None:
        """Send a packed message to process-local channels of a mailbox, or to reply channels.

        Args:
            mailbox: The mailbox.
            parts: The local parts of the channels.
            message: The packed message.
            capacity: How many unread messages each of the channels holds.
            until: When the call gives up, by the event loop's clock.
            delay: Seconds after which the message can be received.

        Returns:
            True if it was sent: a channel that is full by now drops it. False if it was not, because the only channel
            is full or too much waits in the mailbox. None if the process of the mailbox is gone.

        Raises:
            LayerUnavailable: Redis cannot be reached in time, or the process lives and its mailbox is missing.
        """
        return await self._send(mailbox, parts, (LOCAL_MESSAGES, parts, message, delay, capacity), capacity, until)

    async def send_frame(self, mailbox: str, frame: Frame, until: float) -> bool | None:
        """Send a frame. Return and raise like `send`."""
        return await self._send(mailbox, (), frame, math.inf, until)

    async def _send(
        self, mailbox: str, parts: Sequence[str], frame: Frame, capacity: float, until: float
    ) -> bool | None:
        state = self._states.get(mailbox)
        if state is None:
            if len(self._states) >= KNOWN_MAILBOXES:
                self._states.clear()
            state = self._states[mailbox] = _MailboxState()
        age = self._loop.time() - state.read
        if state.refuses(parts):
            if age > REFUSE_SECONDS and not state.replies:
                self._read_state(mailbox, state)
            if state.replies:
                await self._pipeline.call("PING", until=until)  # its reply comes after them
            if state.refuses(parts):
                return False
        state.sent += 1
        if not state.replies and (age > STATE_SECONDS or state.sent * STATES_PER_CAPACITY >= capacity):
            self._read_state(mailbox, state)  # in the same flush
        return await self._write(mailbox, frame, until) or None

    def _read_state(self, mailbox: str, state: _MailboxState) -> None:
        state.read, state.sent = self._loop.time(), 0

        def on_full(reply: Any) -> None:
            state.replies -= 1
            if isinstance(reply, list):
                state.full = frozenset(reply)

        def on_size(reply: Any) -> None:
            state.replies -= 1
            state.size = reply if isinstance(reply, int) else 0  # no mailbox, or a user who may not ask

        state.replies += 1
        self._pipeline.write(("MEMORY", "USAGE", self._keys.mailbox(mailbox)), on_size, patient=False)
        if has_channels(mailbox):
            state.replies += 1
            self._pipeline.write(("SMEMBERS", self._keys.full(mailbox)), on_full, patient=False)


def _is_local_message(sender: str, frames: Any) -> bool:
    """Return whether this is a message to process-local channels that is not delayed: any event loop can handle it."""
    try:
        return not sender and len(frames) == 2 and frames[1][0] == LOCAL_MESSAGES and not frames[1][3]
    except (TypeError, IndexError, KeyError):
        return False


def _is_valid(sender: object, frames: object) -> bool:
    """Return whether these are a sender and frames of its protocol; checked only when handling them has failed."""
    if not isinstance(sender, str) or not isinstance(frames, tuple | list):
        return False
    kinds = [frame[0] if isinstance(frame, tuple | list) and frame else None for frame in frames]
    return all(isinstance(kind, int) and kind >= FIRST_PROTOCOL_KIND for kind in kinds)


def _order(entry_id: bytes) -> tuple[int, int]:
    milliseconds, _, number = entry_id.partition(b"-")
    return int(milliseconds), int(number)
