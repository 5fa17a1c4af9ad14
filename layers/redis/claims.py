"""Claims on shared channels: streams with one consumer group, `workers`; each entry goes to one claimant."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

from asgibus.layers.codec import unpack
from asgibus.layers.contract import Claim
from asgibus.layers.redis.address import Address
from asgibus.layers.redis.connection import RedisConnection, RedisError, pack_command
from asgibus.layers.redis.link import BLOCK_SECONDS, Link, Outage
from asgibus.layers.redis.writer import Writer

logger = logging.getLogger("asgibus.layers")


class Claimant:
    """Takes entries of shared channels for one process. `consumer` is its name in the group."""

    def __init__(self, address: Address, prefix: str, consumer: str, outage: Outage, writer: Writer) -> None:
        self._prefix = prefix
        self._consumer = consumer
        self._writer = writer
        self._link = Link(address, f"{consumer}claims", outage, self._up)
        self._opened = False
        self._waiting: asyncio.Future[list[Claim]] | None = None
        self._channels: dict[str, str] = {}  # key -> channel
        self._limit = 0
        self._held: set[tuple[str, bytes]] = set()
        self._recover = False
        self._stopped = False
        self.damaged = 0

    def key(self, channel: str) -> str:
        """The key of a shared channel's stream."""
        return f"{self._prefix}:shared:{channel}"

    async def claim(self, channels: Sequence[str], limit: int) -> list[Claim]:
        """As `Bus.claim`. Raises LayerUnavailable if the first connection fails."""
        if self._stopped:
            return []
        self._channels = {self.key(channel): channel for channel in channels}
        self._limit = limit
        self._waiting = asyncio.get_running_loop().create_future()
        if not self._opened:
            self._opened = True
            await self._make_groups()
            await self._link.open()
        elif self._link.connection is not None:
            self._ask(self._link.connection)
        return await self._waiting

    def stop(self) -> None:
        """As `Bus.stop_claiming`."""
        self._stopped = True
        if self._waiting is None or self._waiting.done():
            return
        connection = self._link.connection
        if connection is None:
            self._waiting.set_result([])
        else:  # Redis ends the blocked read: with what it has given us, or with nothing, but never with both
            self._writer.write(("CLIENT", "UNBLOCK", connection.client_id), _ignore)

    def done(self, claim: Claim) -> None:
        """As `Bus.done`."""
        key = self.key(claim.channel)
        self._held.discard((key, claim.id))
        self._writer.ack(key, claim.id)

    async def close(self) -> None:
        """Stop reading; leave the groups if nothing is held."""
        await self._link.close()
        if not self._held:
            for key in self._channels:
                self._writer.write(("XGROUP", "DELCONSUMER", key, "workers", self._consumer), _ignore)

    def _up(self, connection: RedisConnection) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._recover = bool(self._held) or self._recover
            self._ask(connection)
        else:
            self._recover = True

    def _ask(self, connection: RedisConnection) -> None:
        """Ask for new entries; after a broken connection first for those that its last reply may have carried."""
        count = max(1, self._limit // len(self._channels))
        start = "0" if self._recover else ">"
        args: tuple[str | int, ...] = (
            "XREADGROUP",
            "GROUP",
            "workers",
            self._consumer,
            "COUNT",
            count,
            "BLOCK",
            BLOCK_SECONDS * 1000,
        )
        connection.write(
            pack_command((*args, "STREAMS", *self._channels, *(start for _ in self._channels))),
            (lambda reply: self._reply(connection, reply),),
        )

    def _reply(self, connection: RedisConnection, reply: Any) -> None:
        waiting = self._waiting
        if waiting is None or waiting.done():
            return
        if isinstance(reply, RedisError):
            if str(reply).startswith("NOGROUP"):
                self._writer.write(("PING",), lambda _: self._ask_again(connection))
                for key in self._channels:
                    self._make_group(key)
            else:
                connection.abort(f"claiming was refused: {reply}")
            return
        claims = [claim for key, entries in reply or () for claim in self._take(key.decode(), entries)]
        self._recover = False
        if claims or self._stopped:
            waiting.set_result(claims)
        else:
            self._ask(connection)

    def _ask_again(self, connection: RedisConnection) -> None:
        if connection is self._link.connection:
            self._ask(connection)

    def _take(self, key: str, entries: Sequence[Any]) -> list[Claim]:
        claims = []
        for entry_id, fields in entries:
            if fields is None or (key, entry_id) in self._held:
                continue  # withdrawn meanwhile, or already being served
            self._held.add((key, entry_id))
            try:
                claims.append(Claim(self._channels[key], entry_id, unpack(fields[1])))
            except ValueError as error:
                self.damaged += 1
                logger.error("shared channel %s: entry %s was dropped: %s", key, entry_id.decode(), error)
                self._held.discard((key, entry_id))
                self._writer.ack(key, entry_id)
        return claims

    async def _make_groups(self) -> None:
        for key in self._channels:
            try:
                await self._writer.call("XGROUP", "CREATE", key, "workers", "0", "MKSTREAM")
            except RedisError as error:
                if not str(error).startswith("BUSYGROUP"):
                    raise

    def _make_group(self, key: str) -> None:
        self._writer.write(("XGROUP", "CREATE", key, "workers", "0", "MKSTREAM"), _ignore)


def _ignore(reply: Any) -> None:
    """A group that exists already, or a client that was not blocked, needs nothing more."""
