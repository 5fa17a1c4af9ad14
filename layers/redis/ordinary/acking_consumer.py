"""Taking messages from ordinary channels that are acknowledged later."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Protocol

from asgibus.layers.contract import Delivery
from asgibus.layers.errors import LayerUnavailable
from asgibus.layers.leases import Beat
from asgibus.layers.redis import scripts
from asgibus.layers.redis.client import log_refusal
from asgibus.layers.redis.codec import EntryCodec, Unreadable
from asgibus.layers.redis.keys import Keys
from asgibus.layers.redis.ordinary.reader import ChannelReader, Entry, parse_item
from asgibus.layers.redis.pipeline import Pipeline, Refused

logger = logging.getLogger("asgibus.layers")

RETRY_SECONDS = 0.5  # until a retry when a store cannot be reached
GIVE_BACK_AT_ONCE = 100  # messages that one script puts back: it holds up Redis for less than a millisecond


class ChannelStore(Protocol):
    """The store of a channel, as a consumer uses it."""

    reader: ChannelReader
    pipeline: Pipeline
    keys: Keys


class AckingConsumer:
    """Takes messages for one process and keeps them under its name until they are acknowledged.

    They lie in a hash beside their channel. Other consumers of the channel put back what a dead process had taken.
    """

    def __init__(
        self,
        store_of: Callable[[str], Awaitable[ChannelStore]],
        entries: EntryCodec,
        consumer: str,
        counts: Counter[str],
        expiry: float,
    ) -> None:
        """Prepare to take.

        Args:
            store_of: Returns the store of a channel; raises LayerUnavailable.
            entries: Unpacks messages.
            consumer: The mailbox of this process, which is its name as a consumer.
            counts: Counts what was given back.
            expiry: Seconds after which an unread message is dropped.
        """
        self._store_of = store_of
        self._stores: dict[str, ChannelStore] = {}
        self._entries = entries
        self._consumer = consumer
        self._counts = counts
        self._expiry = round(expiry * 1000)
        self._channels: set[str] = set()
        self.unreadable = Unreadable()
        self._stopped = asyncio.Event()

    async def take(self, channel: str, limit: int, *, once: bool) -> list[Delivery]:
        """Wait for messages and take up to `limit`; see `Bus.take`."""
        if not once:
            self._channels.add(channel)
        name = ""  # begins the ids of what was taken last, until the reply has come
        while not self._stopped.is_set():
            try:
                reader = (await self._store(channel)).reader
                if name:
                    entries = await self._find_taken(channel, name)
                else:
                    name = "" if once else secrets.token_hex(8)
                    entries = await reader.take(channel, limit, consumer=name and self._consumer, name=name)
                name = ""
                deliveries, pause = self._read(channel, entries, once=once)
                if deliveries:
                    return deliveries
                await self._unless_stopped(reader.wait(channel) if pause is None else asyncio.sleep(pause))
                continue
            except LayerUnavailable as error:
                if isinstance(error, Refused):
                    self._entries.log_unexpected("take refused", f"channel {channel}", f"nothing can be taken: {error}")
                logger.debug("nothing can be taken from %s: %s", channel, error)
            await self._unless_stopped(asyncio.sleep(RETRY_SECONDS))
        return []

    def stop(self) -> None:
        """Make every running and later `take` return."""
        self._stopped.set()

    def acknowledge(self, delivery: Delivery) -> None:
        """Note that a message is handled; buffered."""
        self._forget(delivery.channel, delivery.id)

    def give_back(self, delivery: Delivery, delay: float) -> None:
        """Let a message be taken again, by any consumer, after `delay` seconds; buffered."""
        self._put_back(delivery.channel, [delivery.id], delay)

    @property
    def active(self) -> bool:
        """Whether this process takes messages."""
        return bool(self._channels) and not self._stopped.is_set()

    async def list_claims(self) -> dict[str, list[tuple[str, str]]]:
        """Return the id and the consumer of each message that is not acknowledged, by channel: see `OrphanClaimer`.

        Channels whose store is away are left out.
        """
        channels = [channel for channel in self._channels if channel in self._stores]
        replies = await asyncio.gather(*map(self._taken, channels), return_exceptions=True)
        for reply in replies:
            if isinstance(reply, BaseException) and not isinstance(reply, LayerUnavailable):
                raise reply
        each = zip(channels, replies, strict=True)
        return {channel: reply for channel, reply in each if not isinstance(reply, BaseException)}

    async def claim_orphans(self, claims: Mapping[str, Sequence[tuple[str, str]]], beat: Beat) -> bool:
        """Put back what dead processes had taken from the channels of this one: see `OrphanClaimer`."""
        for channel, taken in claims.items():
            if ids := [entry_id for entry_id, consumer in taken if beat.is_dead(consumer)]:
                self._counts["message given back"] += len(ids)
                logger.warning("%d messages of %s had been taken by processes that died", len(ids), channel)
                self._put_back(channel, ids, 0.0)
        return self._channels <= claims.keys()

    async def close(self) -> None:
        """Put back what was not acknowledged."""
        for channel in self._channels:
            try:
                ids = [entry_id for entry_id, consumer in await self._taken(channel) if consumer == self._consumer]
            except LayerUnavailable as error:
                logger.debug("other processes have to put back what was taken from %s: %s", channel, error)
            else:
                self._put_back(channel, ids, 0.0)

    async def _taken(self, channel: str) -> list[tuple[str, str]]:
        """Return the id and the consumer of each message of a channel that is not acknowledged."""
        store = await self._store(channel)
        reply = await store.pipeline.call("EVAL", scripts.CHANNEL_TAKEN, 1, store.keys.taken(channel), until=_soon())
        # A message without a consumer's name is not given back to anybody.
        pairs = (self._entries.valid_names(f"taken of {channel}", reply[i : i + 2]) for i in range(0, len(reply), 2))
        return [(pair[0], pair[1]) for pair in pairs if len(pair) == 2]

    async def _find_taken(self, channel: str, name: str) -> list[Entry]:
        """Return what a take removed whose reply was lost, by the beginning of the ids. Raises LayerUnavailable."""
        store = await self._store(channel)
        ids = [each for each, _ in await self._taken(channel) if each.startswith(name)]
        if not ids:
            return []
        ids.sort(key=lambda each: int(each.removeprefix(f"{name}x")))  # the number in that take
        values = await store.pipeline.call("HMGET", store.keys.taken(channel), *ids, until=_soon())
        return [_parse_taken(each, value) for each, value in zip(ids, values, strict=True) if value is not None]

    async def _store(self, channel: str) -> ChannelStore:
        store = self._stores[channel] = await self._store_of(channel)
        return store

    def _forget(self, channel: str, entry_id: str) -> None:
        store = self._stores[channel]
        store.pipeline.write(("HDEL", store.keys.taken(channel), entry_id), log_refusal)

    def _put_back(self, channel: str, ids: list[str], delay: float, *, tried: bool = True) -> None:
        store = self._stores[channel]
        keys = store.keys
        names = keys.messages(channel), keys.delayed(channel), keys.taken(channel)
        for start in range(0, len(ids), GIVE_BACK_AT_ONCE):
            some = ids[start : start + GIVE_BACK_AT_ONCE]
            times = self._expiry, round(delay * 1000)
            store.pipeline.write(("EVAL", scripts.CHANNEL_GIVE_BACK, 3, *names, *times, int(tried), *some), log_refusal)

    def _read(self, channel: str, entries: Collection[Entry], *, once: bool) -> tuple[list[Delivery], float | None]:
        """Unpack what was taken.

        A message that another process may be able to read is put back, unless it was acknowledged when it was taken.

        Returns:
            What can be read; and if that is nothing, for how many seconds nothing is to be taken.
        """
        place = self._stores[channel].keys.messages(channel)
        deliveries, foreign, why = [], [], ""
        for entry in entries:
            try:
                message = self._entries.unpack_message(place, entry.payload)
            except ValueError as error:
                reason = None if once else self._entries.count_foreign(error)
                if reason is None:
                    self._entries.log_rejected(f"channel {channel}", entry.id, error)
                    self._forget(channel, entry.id)
                else:
                    foreign.append(entry.id)
                    why = reason
            else:
                deliveries.append(Delivery(channel, entry.id, message, entry.attempt))
        if foreign:
            self._put_back(channel, foreign, 0.0, tried=False)
        if deliveries:
            self.unreadable.on_read()
            return deliveries, None
        return [], self.unreadable.on_unreadable_batch(f"channel {channel}", why) if foreign else None

    async def _unless_stopped(self, waiting: Awaitable[object]) -> None:
        """Wait, at most until `stop`. Raises what the waiting raises."""
        tasks = asyncio.ensure_future(waiting), asyncio.ensure_future(self._stopped.wait())
        cancelled: asyncio.CancelledError | None = None
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError as error:
            cancelled = error
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        if cancelled is not None:
            raise cancelled
        if not tasks[0].cancelled():
            tasks[0].result()


def _parse_taken(entry_id: str, value: bytes) -> Entry:
    """Parse a value of the hash of taken messages, which does not say since when the message can be received."""
    return parse_item(entry_id, b"0:" + value.partition(b"!")[2])


def _soon() -> float:
    """Return when a call gives up for a process that ends, or one with others to look after."""
    return asyncio.get_running_loop().time() + RETRY_SECONDS
