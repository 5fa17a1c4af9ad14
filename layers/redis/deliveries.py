"""Messages of ordinary channels that a process takes and has to acknowledge: they stay under its name until then.

They lie in a hash beside their channel. What a dead process had taken is put back by others that take from there.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from asgibus.layers.contract import Delivery
from asgibus.layers.errors import LayerUnavailable
from asgibus.layers.leases import Beat
from asgibus.layers.redis import channel_scripts
from asgibus.layers.redis.codec import Entries, Unreadable
from asgibus.layers.redis.connection import RedisError
from asgibus.layers.redis.pipeline import Refused
from asgibus.layers.redis.receiver import Entry, taken_entry

if TYPE_CHECKING:
    from asgibus.layers.redis.store import Attachment

logger = logging.getLogger("asgibus.layers")

AGAIN_SECONDS = 0.5  # until a store that cannot be reached is asked again
GIVE_BACK_AT_ONCE = 100  # messages that one script puts back: it holds up Redis for less than a millisecond


class Deliveries:
    """What one process takes. `consumer`: its mailbox."""

    def __init__(
        self,
        place: Callable[[str], Awaitable[Attachment]],
        entries: Entries,
        consumer: str,
        counts: Counter[str],
        expiry: float,
    ) -> None:
        self._place = place
        self._places: dict[str, Attachment] = {}
        self._entries = entries
        self._consumer = consumer
        self._counts = counts
        self._expiry = round(expiry * 1000)
        self._channels: set[str] = set()
        self.unreadable = Unreadable()
        self._stopped = asyncio.Event()

    async def take(self, channel: str, limit: int, *, once: bool) -> list[Delivery]:
        """As `Bus.take`."""
        if not once:
            self._channels.add(channel)
        name = ""  # in the ids of what was taken last, as long as its reply is not here
        while not self._stopped.is_set():
            try:
                receiver = (await self._at(channel)).receiver
                if name:
                    deliveries, pause = self._read(channel, await self._unheard(channel, name), once=once)
                    if deliveries:
                        return deliveries
                    if pause is not None:
                        name = ""
                        await self._unless_stopped(asyncio.sleep(pause))
                        continue
                name = "" if once else secrets.token_hex(8)
                named = {"consumer": self._consumer, "name": name} if name else {}
                entries, due = await receiver.take(channel, limit, **named)
                name = ""
                deliveries, pause = self._read(channel, entries, once=once)
                if deliveries:
                    return deliveries
                if pause is not None:
                    await self._unless_stopped(asyncio.sleep(pause))
                    continue
                await self._unless_stopped(receiver.wait(channel, due))
            except LayerUnavailable as error:
                if isinstance(error, Refused):
                    self._entries.odd("take refused", f"channel {channel}", f"nothing can be taken: {error}")
                logger.debug("nothing can be taken from %s: %s", channel, error)
                await self._unless_stopped(asyncio.sleep(AGAIN_SECONDS))
        return []

    def stop(self) -> None:
        """As `Bus.stop_claiming`."""
        self._stopped.set()

    def acknowledge(self, delivery: Delivery) -> None:
        """As `Bus.acknowledge`."""
        self._forget(delivery.channel, delivery.id)

    def give_back(self, delivery: Delivery, delay: float) -> None:
        """As `Bus.give_back`."""
        self._put_back(delivery.channel, [delivery.id], delay)

    @property
    def active(self) -> bool:
        """Whether it takes."""
        return bool(self._channels) and not self._stopped.is_set()

    async def taken(self) -> dict[str, list[tuple[str, str]]]:
        """The id and the consumer of each message that is not acknowledged, by channel; of those that can be asked."""
        channels = [channel for channel in self._channels if channel in self._places]
        replies = await asyncio.gather(*map(self._taken, channels), return_exceptions=True)
        for reply in replies:
            if isinstance(reply, BaseException) and not isinstance(reply, LayerUnavailable):
                raise reply
        each = zip(channels, replies, strict=True)
        return {channel: reply for channel, reply in each if not isinstance(reply, BaseException)}

    def bury(self, beat: Beat, taken: Mapping[str, Sequence[tuple[str, str]]]) -> bool:
        """Put back what the dead had taken from the same channels. `taken`: from before that beat.

        False if some of the channels are not in it.
        """
        for channel, each in taken.items():
            ids = []
            for entry_id, consumer in each:
                if consumer in beat.ended or not (beat.grace or consumer in beat.live):
                    ids.append(entry_id)
            if ids:
                self._counts["message given back"] += len(ids)
                logger.warning("%d messages of %s were in the hands of processes that died", len(ids), channel)
                self._put_back(channel, ids, 0.0)
        return self._channels <= taken.keys()

    async def close(self) -> None:
        """Put back what was not acknowledged."""
        for channel in self._channels:
            try:
                ids = [entry_id for entry_id, consumer in await self._taken(channel) if consumer == self._consumer]
            except LayerUnavailable as error:
                logger.debug("what was taken from %s is for others to put back: %s", channel, error)
            else:
                self._put_back(channel, ids, 0.0)

    async def _taken(self, channel: str) -> list[tuple[str, str]]:
        """The id and the consumer of each message that is not acknowledged."""
        place = await self._at(channel)
        reply = await place.writer.call("EVAL", channel_scripts.TAKEN, 1, place.keys.taken(channel), until=_soon())
        # What bears no name is nobody's, and is not given back to anybody.
        pairs = (self._entries.names(f"taken of {channel}", reply[i : i + 2]) for i in range(0, len(reply), 2))
        return [(pair[0], pair[1]) for pair in pairs if len(pair) == 2]

    async def _unheard(self, channel: str, name: str) -> list[Entry]:
        """What was taken with ids that begin so, though the reply was lost. Raises LayerUnavailable."""
        place = await self._at(channel)
        ids = [each for each, _ in await self._taken(channel) if each.startswith(name)]
        if not ids:
            return []
        ids.sort(key=lambda each: int(each.removeprefix(f"{name}x")))  # the number in that take
        values = await place.writer.call("HMGET", place.keys.taken(channel), *ids, until=_soon())
        return [taken_entry(each, value) for each, value in zip(ids, values, strict=True) if value is not None]

    async def _at(self, channel: str) -> Attachment:
        """The store of the channel. Raises LayerUnavailable."""
        attachment = self._places[channel] = await self._place(channel)
        return attachment

    def _forget(self, channel: str, entry_id: str) -> None:
        """It is acknowledged."""
        place = self._places[channel]
        place.writer.write(("HDEL", place.keys.taken(channel), entry_id), _log_error)

    def _put_back(self, channel: str, ids: list[str], delay: float, *, tried: bool = True) -> None:
        place = self._places[channel]
        keys = place.keys
        names = keys.messages(channel), keys.delayed(channel), keys.taken(channel)
        for start in range(0, len(ids), GIVE_BACK_AT_ONCE):
            some = ids[start : start + GIVE_BACK_AT_ONCE]
            milliseconds = round(delay * 1000)
            place.writer.write(
                ("EVAL", channel_scripts.GIVE_BACK, 3, *names, self._expiry, milliseconds, int(tried), *some),
                _log_error,
            )

    def _read(self, channel: str, entries: Collection[Entry], *, once: bool) -> tuple[list[Delivery], float | None]:
        """Return what can be read, and for how many seconds nothing is to be taken if nothing could be.

        What others may be able to read is put back for them, unless it was acknowledged when it was taken.
        """
        place = self._places[channel].keys.messages(channel)
        deliveries, foreign, why = [], [], ""
        for entry in entries:
            try:
                message = self._entries.unpack_message(place, entry.payload)
            except ValueError as error:
                reason = None if once else self._entries.foreign(error)
                if reason is None:
                    self._entries.refused(f"channel {channel}", entry.id, error)
                    self._forget(channel, entry.id)
                else:
                    foreign.append(entry.id)
                    why = reason
            else:
                deliveries.append(Delivery(channel, entry.id, message, entry.attempt))
        if foreign:
            self._put_back(channel, foreign, 0.0, tried=False)
        if deliveries:
            self.unreadable.read()
            return deliveries, None
        return [], self.unreadable.refused(f"channel {channel}", why) if foreign else None

    async def _unless_stopped(self, waiting: Any) -> None:
        """Wait, and give it up when it is stopped. Raises what the waiting raises."""
        tasks = asyncio.ensure_future(waiting), asyncio.ensure_future(self._stopped.wait())
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        if not tasks[0].cancelled():
            tasks[0].result()


def _soon() -> float:
    """For a process that ends, or one with others to look after."""
    return asyncio.get_running_loop().time() + AGAIN_SECONDS


def _log_error(reply: Any) -> None:
    if isinstance(reply, RedisError):
        logger.error("Redis refused a command: %s", reply)
