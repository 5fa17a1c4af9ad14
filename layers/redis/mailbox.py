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
from asgibus.layers.redis.connection import RedisConnection, RedisError, pack_command
from asgibus.layers.redis.link import BLOCK_SECONDS, Link, Outage
from asgibus.layers.redis.writer import PAYLOAD_VERSION

logger = logging.getLogger("asgibus.layers")

READ_ENTRIES = 64  # entries a read returns at most; each holds up to a mebibyte, and mostly far less
TRIM_ENTRIES = 256  # entries read before the stream is trimmed: a command less per read
TRIM_BYTES = 1024 * 1024  # bytes read before the stream is trimmed, so that large frames do not pile up in Redis

OnBatch = Callable[[str, str, Sequence[Frame]], None]


class MailboxReader:
    """Reads one mailbox and hands each entry to `on_batch(sender, epoch, frames)` from the connection's callback."""

    def __init__(
        self, address: Address, key: str, name: str, outage: Outage, on_batch: OnBatch, on_up: Callable[[], None]
    ) -> None:
        self._key = key
        self._on_batch = on_batch
        self._on_up = on_up
        self._link = Link(address, name, outage, self._up)
        self._connection: RedisConnection | None = None
        self._cursor: bytes = b"0-0"
        self._entries = 0
        self._bytes = 0
        self.damaged = 0

    async def open(self) -> None:
        """Connect and begin to read. Raises LayerUnavailable."""
        await self._link.open()

    async def close(self) -> None:
        """Stop reading."""
        await self._link.close()

    def _up(self, connection: RedisConnection) -> None:
        self._connection = connection
        self._read(connection)
        self._on_up()

    def _read(self, connection: RedisConnection) -> None:
        read = pack_command(
            ("XREAD", "COUNT", READ_ENTRIES, "BLOCK", BLOCK_SECONDS * 1000, "STREAMS", self._key, self._cursor)
        )
        if self._entries >= TRIM_ENTRIES or self._bytes >= TRIM_BYTES:
            self._entries = self._bytes = 0
            connection.write(
                pack_command(("XTRIM", self._key, "MINID", self._cursor)) + read, (self._trimmed, self._reply)
            )
        else:
            connection.write(read, (self._reply,))

    def _trimmed(self, reply: Any) -> None:
        if isinstance(reply, RedisError):
            logger.error("mailbox %s cannot be trimmed: %s", self._key, reply)

    def _reply(self, reply: Any) -> None:
        connection = self._connection
        assert connection is not None
        if isinstance(reply, RedisError):
            connection.abort(f"reading the mailbox was refused: {reply}")  # the link tries again, with pauses
            return
        entries = reply[0][1] if reply else ()
        if entries:
            self._cursor = entries[-1][0]
            self._entries += len(entries)
            self._bytes += sum(len(fields[1]) for _, fields in entries)
        for entry_id, fields in entries:
            try:
                version, sender, epoch, frames = unpack(fields[1])
                if version != PAYLOAD_VERSION:
                    raise ValueError(f"payload version {version!r}")
            except (ValueError, TypeError) as error:  # TypeError: it holds no four things
                self.damaged += 1
                logger.error("mailbox %s: entry %s was skipped: %s", self._key, entry_id.decode(), error)
                continue
            try:
                self._on_batch(sender, epoch, frames)
            except Exception:  # a fault of the handler must not end the reading, nor drop the entries behind this one
                self.damaged += 1
                logger.exception("mailbox %s: handling entry %s failed", self._key, entry_id.decode())
        self._read(connection)  # behind the handling, so that clients get theirs first
