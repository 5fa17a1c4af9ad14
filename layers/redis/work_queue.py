"""Claims on shared channels: streams with one consumer group, `workers`; each entry goes to one claimant.

An entry stays pending, under the claimant's name, until it is done. So a reply that a broken connection swallowed is
found again, what was never given out is handed back at the end, and what a dead process had claimed is taken over by
another one. It keeps those under a second name, so that it knows them apart whatever gets lost on the way.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from asgibus.layers.contract import Claim
from asgibus.layers.redis import scripts
from asgibus.layers.redis.client import Link, Outage
from asgibus.layers.redis.codec import MOST_RELEASES, Entries, Unreadable
from asgibus.layers.redis.config import Address
from asgibus.layers.redis.connection import BLOCK_SECONDS, RedisConnection, RedisError, pack_command
from asgibus.layers.redis.keys import Keys
from asgibus.layers.redis.pipeline import Writer

logger = logging.getLogger("asgibus.layers")

NO_GROUP = ("NOGROUP", "UNBLOCKED")  # nobody has made the stream yet, or it vanished while we were waiting
ORPHANS = "orphans"  # behind the name of a claimant: what it took over from the dead
ORPHANS_AT_ONCE = 1000  # that one script takes over: it holds up Redis for a millisecond
ORPHANS_READ = 100  # whose payloads are read in one go
CLOCKS_DIFFER_SECONDS = 1  # between a Redis and the replica that takes over from it
UNBLOCK_SECONDS = 0.05  # until a read that was not blocked yet when it was to be ended is ended again


class Claimant:
    """Takes entries of shared channels for one process. `consumer` is its name in the group."""

    def __init__(
        self,
        address: Address,
        keys: Keys,
        entries: Entries,
        consumer: str,
        outage: Outage,
        writer: Writer,
        on_wrong_type: Callable[[], None],
    ) -> None:
        """`on_wrong_type` is called when one of the keys holds something else than a stream."""
        self._on_wrong_type = on_wrong_type
        self._keys = keys
        self._entries = entries
        self._consumer = consumer
        self._writer = writer
        self._counts = outage.counts
        self._link = Link(address, f"{consumer}claims", outage, self._up)
        self._opened = False
        self._waiting: asyncio.Future[list[Claim]] | None = None
        self._channels: dict[str, str] = {}  # key -> channel
        self._turns: list[str] = []  # the keys, in the order in which they are asked
        self._limit = 0
        self._probed = 0  # how many of the keys were asked alone and had nothing
        self._held: set[tuple[str, bytes]] = set()
        self._run_id = ""  # of the Redis that was claimed from last
        self._stale_before = 0  # in ms, by its clock
        self._recover = False  # the next answer may be of any age
        self._acked_meanwhile: list[tuple[str, bytes]] = []
        self._stopped = False
        self._took_over = False
        self._unread: set[str] = set()  # keys where something was taken over that has not been read yet
        self._on_acked = self._acked
        self.unreadable = Unreadable()
        self._given_out = 0  # claims of the last batch
        self._released = 0  # those of them that were released
        self._refused = ""  # why the last entry could not be read
        self._pausing: asyncio.TimerHandle | None = None  # while nothing is to be claimed

    async def claim(self, channels: Sequence[str], limit: int) -> list[Claim]:
        """As `Bus.claim`."""
        if self._stopped:
            return []
        if [*self._channels.values()] != [*channels]:
            self._channels = {self._keys.shared(channel): channel for channel in channels}
            self._turns = [*self._channels]
        self._limit = limit
        self._probed = 0
        self._waiting = asyncio.get_running_loop().create_future()
        self._judge_batch()
        if not self._opened:
            self._opened = True
            self._link.start()
        elif self._link.connection is not None and self._pausing is None:
            self._ask(self._link.connection)
        return await self._waiting

    def stop(self) -> None:
        """As `Bus.stop_claiming`."""
        self._stopped = True
        self._end_read()

    def done(self, claim: Claim) -> None:
        """As `Bus.done`."""
        self._writer.ack(self._keys.shared(claim.channel), claim.id, self._on_acked)

    def release(self, claim: Claim, why: str) -> None:
        """Give a claim back: see `Bus.release`."""
        self._release(self._keys.shared(claim.channel), claim.id, why)

    @property
    def active(self) -> bool:
        """Whether it claims."""
        return bool(self._channels) and not self._stopped

    async def consumers(self) -> dict[str, list[str]]:
        """The names of the others who claim or claimed, by key. Raises LayerUnavailable."""
        keys = list(self._channels)
        replies = await asyncio.gather(*(self._writer.call("EVAL", scripts.CONSUMERS, 1, key) for key in keys))
        return {
            key: [name for name in self._entries.names(key, reply) if not name.startswith(self._consumer)]
            for key, reply in zip(keys, replies, strict=True)
        }

    @property
    def keys(self) -> list[str]:
        """The streams from which it claims."""
        return list(self._channels)

    async def take_over(self, dead: Mapping[str, Sequence[str]], orphaned: Callable[[Claim], None]) -> None:
        """Take what these had claimed, by key, and call `orphaned` with each claim. Raises LayerUnavailable."""
        name = self._consumer + ORPHANS
        for key, names in dead.items():
            if names:
                self._took_over = True
                self._unread.add(key)
                while await self._writer.call("EVAL", scripts.TAKE_OVER, 1, key, name, ORPHANS_AT_ONCE, *names):
                    pass
            if key not in self._unread:
                continue
            start = b"0"
            full = True
            while full:
                arguments = ("GROUP", "workers", name, "COUNT", ORPHANS_READ, "STREAMS", key, start)
                entries = (await self._writer.call("XREADGROUP", *arguments))[0][1]
                full = len(entries) == ORPHANS_READ
                # What is unreadable here stays under our name: whoever takes over from us may read it.
                for claim in self._take(key, entries, _ignore_unreadable):
                    self._counts["orphan"] += 1
                    orphaned(claim)
                if full:
                    start = entries[-1][0]
            self._unread.discard(key)

    def leave(self, run_id: str) -> None:
        """Leave a Redis that is not this one: another has taken its place."""
        self._link.leave(run_id)

    async def close(self) -> None:
        """Stop reading; hand back what was not given out, and leave the groups unless something is still held."""
        if self._pausing is not None:
            self._pausing.cancel()
        await self._link.close()
        if not self._held:
            for key in self._channels:
                self._writer.write(("EVAL", scripts.RELEASE_CONSUMER, 1, key, self._consumer), _ignore)
        if self._took_over:
            for key in self._channels:
                self._writer.write(("EVAL", scripts.REMOVE_CONSUMER, 1, key, self._consumer + ORPHANS), _ignore)

    def _up(self, connection: RedisConnection) -> None:
        self._recover = True
        if not connection.run_id or connection.run_id != self._run_id:
            self._run_id = connection.run_id
            connection.write(pack_command(("TIME",)), (self._moved,))
        if self._waiting is not None and not self._waiting.done() and self._pausing is None:
            self._ask(connection)

    def _judge_batch(self) -> None:
        """Pause if nothing of the last batch could be read by whoever got it."""
        given_out, released = self._given_out, self._released
        self._given_out = self._released = 0
        if released and released >= given_out:
            self._pause()
        elif given_out:
            self.unreadable.read()

    def _pause(self) -> None:
        """Claim nothing for a while, as nothing of a batch could be read."""
        seconds = self.unreadable.refused(" and ".join(self._channels.values()), self._refused)
        if seconds:
            self._pausing = asyncio.get_running_loop().call_later(seconds, self._go_on)

    def _go_on(self) -> None:
        self._pausing = None
        if self._waiting is not None and not self._waiting.done() and self._link.connection is not None:
            self._ask(self._link.connection)

    def _moved(self, reply: Any) -> None:
        """This is another Redis than before, or the first. A replica that took over may not know what was done last."""
        if not isinstance(reply, RedisError):
            self._stale_before = (int(reply[0]) + CLOCKS_DIFFER_SECONDS) * 1000

    def _end_read(self) -> None:
        """Let Redis end the blocked read: with what it has given us, or with nothing, but never with both."""
        if self._waiting is None or self._waiting.done():
            return
        connection = self._link.connection
        if connection is None or self._pausing is not None:
            self._waiting.set_result([])
        else:
            self._writer.write(("CLIENT", "UNBLOCK", connection.client_id), _ignore)
            asyncio.get_running_loop().call_later(UNBLOCK_SECONDS, self._end_read)

    def _ask(self, connection: RedisConnection) -> None:
        """Ask for new entries; on a new connection first for those that the last one's reply may have carried."""
        keys = self._turns
        limit = self._limit if self.unreadable.why is None else 1
        options: tuple[str | int, ...]
        if self._recover:
            options = ()
        elif limit < len(keys) and self._probed < len(keys):
            # A read takes as many from each stream: with room for less than that, each is asked alone, in turns.
            keys = [keys[0]]
            options = ("COUNT", limit)
            self._probed += 1
            self._turns = [*self._turns[1:], *keys]
        else:
            options = ("COUNT", max(1, limit // len(keys)), "BLOCK", BLOCK_SECONDS * 1000)
        start = "0" if self._recover else ">"
        connection.write(
            pack_command(
                (
                    *("XREADGROUP", "GROUP", "workers", self._consumer),
                    *options,
                    *("STREAMS", *keys, *(start for _ in keys)),
                )
            ),
            (partial(self._reply, connection),),
        )

    def _reply(self, connection: RedisConnection, reply: Any) -> None:
        waiting = self._waiting
        if waiting is None or waiting.done():
            return
        if isinstance(reply, RedisError):
            if str(reply).startswith(NO_GROUP):
                self._make_groups(connection)
            else:
                connection.abort(f"claiming was refused: {reply}")  # the link tries again, with pauses
                if str(reply).startswith("WRONGTYPE"):
                    self._on_wrong_type()
            return
        before = self._released
        claims = [claim for key, entries in reply or () for claim in self._take(key.decode(), entries, self._release)]
        if self._recover:
            self._recover = False
            self._held.difference_update(self._acked_meanwhile)
            self._acked_meanwhile.clear()
        if claims or self._stopped:
            self._given_out, self._released = len(claims[: self._limit]), 0
            waiting.set_result(claims[: self._limit])
            for claim in claims[self._limit :]:
                self._hand_back(claim)
            return
        if self._released > before:
            self._given_out = self._released = 0
            self._pause()
        if self._pausing is None:
            self._ask(connection)

    def _take(self, key: str, entries: Sequence[Any], release: Callable[[str, bytes, str], None]) -> list[Claim]:
        """Return what can be read. `release` is called with what others may be able to read, and why it cannot here."""
        claims = []
        for entry_id, fields in entries:
            if (key, entry_id) in self._held:
                continue
            self._held.add((key, entry_id))
            if fields is None:  # it was claimed, and deleted behind our back
                self._writer.ack(key, entry_id, self._on_acked)
                continue
            try:
                entry = self._entries.unpack(key, fields[1])
            except ValueError as error:
                if why := self._entries.foreign(error):
                    release(key, entry_id, why)
                else:
                    self._entries.refused(f"shared channel {key}", entry_id.decode(), error)
                    self._writer.ack(key, entry_id, self._on_acked)
                continue
            claims.append(Claim(self._channels[key], entry_id, entry, _since(entry_id, fields) < self._stale_before))
        return claims

    def _release(self, key: str, entry_id: bytes, why: str) -> None:
        """Leave an entry that cannot be read here to others."""
        self._released += 1
        self._refused = why

        def put_back(reply: Any) -> None:
            self._held.discard((key, entry_id))
            if isinstance(reply, RedisError):
                logger.error("an entry of %s could not be given back: %s", key, reply)
            elif reply == 1:
                self._counts["unreadable entry"] += 1
                logger.error("an entry of %s was dropped: %d times nobody could read it", key, MOST_RELEASES)

        self._writer.write(("EVAL", scripts.RELEASE, 1, key, entry_id, MOST_RELEASES), put_back)

    def _hand_back(self, claim: Claim) -> None:
        """More came than there was room for: somebody else may have it."""
        key = self._keys.shared(claim.channel)
        self._writer.write(("EVAL", scripts.REQUEUE, 1, key, claim.id), lambda _: self._held.discard((key, claim.id)))

    def _acked(self, key: str, ids: list[bytes]) -> None:
        """Redis knows that these are done: they cannot come again, so they need not be remembered.

        But the answer to the first question on a new connection may be older than that.
        """
        if self._recover:
            self._acked_meanwhile += [(key, entry_id) for entry_id in ids]
        else:
            self._held.difference_update([(key, entry_id) for entry_id in ids])

    def _make_groups(self, connection: RedisConnection) -> None:
        """Make the streams with their groups, from the first entry on, and ask again."""
        last = self._turns[-1]

        def made(key: str, reply: Any) -> None:
            if connection is not self._link.connection:
                return  # the next one asks by itself
            if isinstance(reply, RedisError) and not str(reply).startswith("BUSYGROUP"):
                connection.abort(f"making the group of {key} was refused: {reply}")
            elif key == last:
                self._ask(connection)

        for key in self._turns:
            self._writer.write(("XGROUP", "CREATE", key, "workers", "0", "MKSTREAM"), partial(made, key))


def _since(entry_id: bytes, fields: Sequence[bytes]) -> int:
    """When an entry was written first, in ms by the clock of its Redis."""
    if len(fields) > 3 and fields[2] == b"since" and (first := fields[3].partition(b"-")[0]).isdigit():
        return int(first)
    return int(entry_id.partition(b"-")[0])


def _ignore_unreadable(key: str, entry_id: bytes, why: str) -> None:
    """Count an entry that cannot be read, and leave it where it is."""


def _ignore(reply: Any) -> None:
    """A client that was not blocked, or a group that is not there any more, needs nothing more."""
