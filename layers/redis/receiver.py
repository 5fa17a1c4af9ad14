"""Taking messages out of ordinary channels.

A reader waits with a command that takes (BLPOP), so a message costs it one round trip. Every other second, and when a
delayed message is due, it runs a script instead, which says what time it is in Redis; until the next one, the age of a
message follows from the stamp that it bears. Where that leaves a doubt, as behind a step of Redis's clock, the script
is run again.
"""

from __future__ import annotations

import asyncio
import math
from functools import partial
from typing import Any, NamedTuple

from asgibus.layers.contract import Message
from asgibus.layers.redis import channel_scripts
from asgibus.layers.redis.blocking import BlockingConnections, Moving
from asgibus.layers.redis.codec import Entries
from asgibus.layers.redis.config import Address
from asgibus.layers.redis.connection import BLOCK_SECONDS, pack_command
from asgibus.layers.redis.keys import Keys
from asgibus.layers.redis.left import Left
from asgibus.layers.redis.pipeline import Writer

LOOKED_AT_CHANNELS = 1000  # whose last look is remembered
MOVING_SECONDS = 0.1  # until it is tried again: a slot moves in less, and a new master comes in seconds
DOUBT_MS = 100  # more than two clocks drift apart between two looks
TOKEN = b""


class Entry(NamedTuple):
    """A message as it was taken out of a channel. `id`: of one that is to be acknowledged. `payload` is packed.

    `stamp`: since when it can be received, by Redis's clock in ms.
    """

    id: str
    stamp: int
    attempt: int
    payload: bytes


class Look(NamedTuple):
    """What the script said of a channel."""

    generation: int
    """See `BlockingConnections`."""
    asked: float
    """When, by the loop's clock."""
    now: int
    """Redis's time in ms, at that time or a moment later."""
    due: int
    """ms until a message is due, or -1."""
    until: float
    """When the script has to be run again, by the loop's clock."""
    pop: bytes
    """The command that waits for so long, and takes."""


class Receiver:
    """Takes messages out of ordinary channels, for one event loop."""

    def __init__(
        self, address: Address, keys: Keys, entries: Entries, writer: Writer, *, expiry: float, group_expiry: float
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._keys = keys
        self._entries = entries
        self._expiry = round(expiry * 1000)
        self._taken_expiry = round(group_expiry * 1000)
        self._connections = BlockingConnections(address, writer, "asgibus-receive")
        self._left = Left(self._connections, self._put_back, self._pass_on)
        self._looks: dict[str, Look] = {}  # of channels without delayed messages

    async def receive(self, channel: str) -> Message:
        """The next message of a channel, as `ChannelLayer.receive` gives it. Raises LayerUnavailable."""
        look = self._looks.get(channel)
        token = False  # whether it is here
        try:
            while True:
                entry = None
                try:
                    if channel in self._left:
                        item = await self._left.take_over(channel)
                    elif look is None or not self._holds(look) or self._loop.time() >= look.until:
                        look, taken = await self._look(channel, 1)
                        token = not taken and look.due >= 0
                        if not taken:
                            continue
                        entry, item = taken[0], None
                    else:
                        item = await self._pop(channel, look)
                    if item == TOKEN:
                        look, token = None, True
                    elif item is not None:
                        entry = _entry("", item)
                        if entry.payload and not (look and self._is_fresh(entry, look)):
                            look = await self._look_again(channel, item)
                            token = look.due >= 0
                            if entry.stamp <= look.now - self._expiry:
                                continue
                except Moving:
                    # The writer, which may have nothing else to write, has to follow: it ends our waits.
                    self._connections.tell("EXISTS", self._keys.messages(channel))
                    await asyncio.sleep(MOVING_SECONDS)
                    continue
                if entry is not None and (message := self._unpack(channel, entry)) is not None:
                    return message
        finally:
            if token:
                self._pass_on(channel)

    async def take(self, channel: str, limit: int, *, consumer: str = "", name: str = "") -> tuple[list[Entry], int]:
        """Take up to `limit` messages if there are any; and how many ms it is until another is due, or -1.

        `consumer`: under whose name they stay until they are acknowledged, with ids that begin with `name`, which no
        other call has; "" if they need not be. If it has taken none, `wait` is to be called then. Not to be cancelled,
        unless there is a consumer. Raises LayerUnavailable.
        """
        acknowledged = (consumer, self._taken_expiry, name) if consumer else ()
        reply = await self._connections.ask(channel, self._take_command(channel, limit, *acknowledged))
        return _entries(reply[2:]), reply[1]

    async def wait(self, channel: str, due: int) -> None:
        """Until the channel holds something, or something is due, or for a while. `due`: as `take` says.

        Raises LayerUnavailable.
        """
        key = self._keys.messages(channel)
        # What is taken from the head is put there: that waits and changes nothing.
        command = pack_command(("BLMOVE", key, key, "LEFT", "LEFT", _seconds(due)))
        try:
            await self._connections.ask(channel, command)
        except asyncio.CancelledError:
            if due >= 0:
                self._pass_on(channel)
            raise

    async def answer(self, key: str, until: float) -> bytes | None:
        """Wait for the only item of a list that is no channel; None at the time `until` of the event loop's clock.

        Raises LayerUnavailable.
        """
        while (seconds := until - self._loop.time()) > 0:
            command = pack_command(("BLPOP", key, _seconds(math.ceil(seconds * 1000))))
            reply = await self._connections.ask(key, command)
            if reply is not None:
                item: bytes = reply[1]
                return item
        return None

    def clear(self) -> None:
        """Forget what cancelled readers had taken."""
        self._left.clear()

    async def close(self) -> None:
        """End the idle connections; put back what cancelled readers had taken and nobody has read since."""
        await self._left.close()
        self._connections.close()

    async def _look(self, channel: str, limit: int) -> tuple[Look, list[Entry]]:
        """Run the script; it takes up to that many messages."""
        generation, asked = self._connections.generation, self._loop.time()
        command = self._take_command(channel, limit)
        reply = await self._connections.ask(channel, command, partial(self._left.add, channel, _left_by_script))
        now, due = reply[:2]
        seconds = _seconds(due)
        pop = self._pop_command(channel, seconds)
        look = Look(generation, asked, now, due, self._loop.time() + float(seconds), pop)
        if due >= 0:
            self._looks.pop(channel, None)
        else:
            if len(self._looks) >= LOOKED_AT_CHANNELS:
                self._looks.clear()
            self._looks[channel] = look
        return look, _entries(reply[2:])

    async def _look_again(self, channel: str, item: bytes) -> Look:
        """The same, to know more about an item that was taken, and is kept if this is cancelled."""
        try:
            look, _ = await self._look(channel, 0)
        except BaseException:
            self._left.keep(channel, item)
            raise
        return look

    async def _pop(self, channel: str, look: Look) -> bytes | None:
        """Wait for an item, which may be the token, and take it; None if there was none for a while."""
        command = look.pop
        if look.due >= 0:  # the wait may have been ended before its time
            command = self._pop_command(channel, _seconds(math.ceil((look.until - self._loop.time()) * 1000)))
        reply = await self._connections.ask(channel, command, partial(self._left.add, channel, _left_by_pop))
        return None if reply is None else reply[1]

    def _pop_command(self, channel: str, seconds: str) -> bytes:
        return pack_command(("BLPOP", self._keys.messages(channel), seconds))

    def _take_command(self, channel: str, limit: int, *acknowledged: str | int) -> bytes:
        keys = self._keys
        names = keys.messages(channel), keys.delayed(channel), keys.taken(channel)
        return pack_command(("EVAL", channel_scripts.TAKE, 3, *names, self._expiry, limit, *acknowledged))

    def _holds(self, look: Look) -> bool:
        return look.generation == self._connections.generation

    def _is_fresh(self, entry: Entry, look: Look) -> bool:
        """Whether there is no doubt that it has not expired."""
        now = look.now + (self._loop.time() - look.asked) * 1000 + 1  # or a little less
        return self._holds(look) and now - self._expiry + DOUBT_MS < entry.stamp < now + DOUBT_MS

    def _unpack(self, channel: str, entry: Entry) -> Message | None:
        """None if there is no message in it, which is counted and logged."""
        try:
            return self._entries.unpack_message(self._keys.messages(channel), entry.payload)
        except ValueError as error:
            self._entries.refused(f"channel {channel}", str(entry.stamp), error)
            return None

    def _put_back(self, channel: str, items: list[bytes]) -> None:
        """At the head. If that fails they are lost: at most once is what was promised."""
        key = self._keys.messages(channel)
        self._connections.tell("EVAL", channel_scripts.RETURN, 1, key, self._expiry, *items, patient=True)

    def _pass_on(self, channel: str) -> None:
        """Let another reader look when the next message is due."""
        names = self._keys.messages(channel), self._keys.delayed(channel)
        self._connections.tell("EVAL", channel_scripts.PASS_ON, 2, *names)


def _seconds(due: int) -> str:
    """For how long to wait."""
    return str(BLOCK_SECONDS) if due < 0 else f"{min(BLOCK_SECONDS, max(due, 1) / 1000):.3f}"


def _entry(entry_id: str, item: bytes) -> Entry:
    """An item that is none has an empty payload, which is no message, and no time at which it expires."""
    try:
        stamp, attempt, payload = item.split(b":", 2)
        return Entry(entry_id, int(stamp), int(attempt), payload)
    except ValueError:
        return Entry(entry_id, 0, 1, b"")


def taken_entry(entry_id: str, value: bytes) -> Entry:
    """What stands under that id in the hash of what was taken, which does not say since when it could be received."""
    return _entry(entry_id, b"0:" + value.partition(b"!")[2])


def _entries(taken: list[bytes]) -> list[Entry]:
    """What TAKE names: ids and items."""
    return [_entry(entry_id.decode(), item) for entry_id, item in zip(taken[::2], taken[1::2], strict=True)]


def _left_by_pop(reply: Any) -> tuple[bytes | None, bool]:
    """The item that a reply holds, if any, and whether the token came with it."""
    item = None if reply is None else reply[1]
    return item or None, item == TOKEN


def _left_by_script(reply: Any) -> tuple[bytes | None, bool]:
    """The same for TAKE, which was to take one."""
    if reply is None:
        return None, False
    item = reply[3] if len(reply) > 2 else None
    return item, item is None and reply[1] >= 0
