"""The reader of a mailbox: a stream read with a cursor, trimmed by its reader.

The cursor is kept here, so a dropped connection loses nothing: the next one reads on. An entry that is damaged, or that
its handler cannot stand, is counted, logged and skipped.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from asgibus.layers.codec import unpack
from asgibus.layers.contract import Frame
from asgibus.layers.redis.address import Address
from asgibus.layers.redis.connection import BLOCK_SECONDS, RedisConnection, RedisError, pack_command
from asgibus.layers.redis.link import Link, Outage
from asgibus.layers.redis.writer import PAYLOAD_VERSION

logger = logging.getLogger("asgibus.layers")

READ_ENTRIES = 64  # entries a read returns at most; each holds up to a mebibyte, and mostly far less
TRIM_ENTRIES = 256  # entries read before the stream is trimmed: a command less per read
TRIM_BYTES = 1024 * 1024  # bytes read before the stream is trimmed, so that large frames do not pile up in Redis

OnBatch = Callable[[str, Sequence[Frame]], None]


class MailboxReader:
    """Reads one mailbox and hands each entry to `on_batch(sender, frames)` from the connection's callback."""

    def __init__(self, address: Address, key: str, name: str, outage: Outage, on_batch: OnBatch) -> None:
        self._key = key
        self._counts = outage.counts
        self._on_batch = on_batch
        self._link = Link(address, name, outage, self._up)
        self._connection: RedisConnection | None = None
        self.cursor: bytes = b"0-0"
        self._stale = False  # the read that is under way began before `restart`
        self._entries = 0
        self._bytes = 0

    async def open(self) -> None:
        """Connect and begin to read. Raises LayerUnavailable."""
        await self._link.open()

    async def close(self) -> None:
        """Stop reading."""
        await self._link.close()

    def restart(self, cursor: bytes) -> int | None:
        """Read on behind `cursor`: the stream is another one. Gives the id of the client whose read may be ended."""
        self.cursor = cursor
        if self._link.connection is None:
            return None
        self._stale = True
        return self._link.connection.client_id

    def leave(self, run_id: str) -> None:
        """Leave a Redis that is not this one: another has taken its place."""
        self._link.leave(run_id)

    def _up(self, connection: RedisConnection) -> None:
        self._connection = connection
        self._stale = False
        self._read(connection)

    def _read(self, connection: RedisConnection) -> None:
        read = pack_command(
            ("XREAD", "COUNT", READ_ENTRIES, "BLOCK", BLOCK_SECONDS * 1000, "STREAMS", self._key, self.cursor)
        )
        if self._entries >= TRIM_ENTRIES or self._bytes >= TRIM_BYTES:
            self._entries = self._bytes = 0
            connection.write(
                pack_command(("XTRIM", self._key, "MINID", self.cursor)) + read, (self._trimmed, self._reply)
            )
        else:
            connection.write(read, (self._reply,))

    def _trimmed(self, reply: Any) -> None:
        if isinstance(reply, RedisError) and self._connection is not None:
            self._connection.abort(f"trimming the mailbox was refused: {reply}")  # it may be a replica now

    def _reply(self, reply: Any) -> None:
        connection = self._connection
        assert connection is not None
        if isinstance(reply, RedisError):
            connection.abort(f"reading the mailbox was refused: {reply}")  # the link tries again, with pauses
            return
        if self._stale:
            self._stale = False
            self._read(connection)
            return
        entries = reply[0][1] if reply else ()
        if entries:
            self.cursor = entries[-1][0]
            self._entries += len(entries)
            self._bytes += sum(len(fields[1]) for _, fields in entries)
        for entry_id, fields in entries:
            try:
                version, sender, frames = unpack(fields[1])
                if version != PAYLOAD_VERSION:
                    raise ValueError(f"payload version {version!r}")
            except (ValueError, TypeError) as error:  # TypeError: it holds no three things
                self._counts["damaged entry"] += 1
                logger.error("mailbox %s: entry %s was skipped: %s", self._key, entry_id.decode(), error)
                continue
            try:
                self._on_batch(sender, frames)
            except Exception:  # a fault of the handler must not end the reading, nor drop the entries behind this one
                self._counts["damaged entry"] += 1
                logger.exception("mailbox %s: handling entry %s failed", self._key, entry_id.decode())
        self._read(connection)  # behind the handling, so that clients get theirs first
