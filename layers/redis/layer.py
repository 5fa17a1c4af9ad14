"""The channel layer on Redis, as apps see it.

Everything that belongs to an event loop (connections, tasks, mailboxes) lives in an `Attachment`, made at the first use
in that loop, so that one layer object serves several loops, one after another or at once.
"""

from __future__ import annotations

import asyncio
import logging
import re
import threading
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from asgibus.layers.codec import pack, pack_message
from asgibus.layers.contract import DEAD, GROUP_MESSAGE, MESSAGE, Bus, ChannelLayer, Frame, Handler, Message
from asgibus.layers.errors import ChannelFull, LayerUnavailable
from asgibus.layers.names import require_channel, require_group, split_local
from asgibus.layers.redis import scripts
from asgibus.layers.redis.address import Address
from asgibus.layers.redis.attachment import Attachment
from asgibus.layers.redis.writer import CALL_SECONDS, PAYLOAD_VERSION, Writer

logger = logging.getLogger("asgibus.layers")


class RedisChannelLayer(ChannelLayer):
    """A channel layer between processes. `url` as in `open_layer`; `prefix` starts every key in Redis."""

    def __init__(
        self,
        url: str = "redis://127.0.0.1:6379",
        *,
        prefix: str = "asgibus",
        expiry: int = 60,
        group_expiry: int = 86400,
        capacity: int = 100,
    ) -> None:
        self.address = Address.from_url(url)
        self.prefix = prefix
        self.expiry = expiry
        self.group_expiry = group_expiry
        self.capacity = capacity
        self.counts = Counter()
        self._lock = threading.Lock()
        self._attachments: dict[asyncio.AbstractEventLoop, Attachment] = {}

    async def send(self, channel: str, message: Message) -> None:
        local = split_local(require_channel(channel, whole=True))
        payload = pack_message(message)
        attachment = await self._attachment()
        writer = attachment.writer
        with attachment.outage.counted():
            if local is None:
                if not await self._send_ordinary(writer, channel, payload):
                    raise ChannelFull(channel, self.capacity)
            elif not await attachment.sent.send(local[0], (MESSAGE, local[1], message), until=_until()):
                logger.info("a message to %s was dropped: its process is gone", channel)

    async def receive(self, channel: str) -> Message:
        local = split_local(require_channel(channel, whole=True))
        attachment = await self._attachment()
        if local is None:
            return await attachment.receiver.receive(self._channel_key(channel))
        return await attachment.receive_local(*local)

    async def new_channel(self, prefix: str = "specific") -> str:
        require_channel(prefix)
        return require_channel(await (await self._attachment()).new_channel(prefix))

    async def group_add(self, group: str, channel: str) -> None:
        key = self._group_key(group)
        member = require_channel(channel)
        writer = (await self._attachment()).writer
        await writer.call("EVAL", scripts.GROUP_ADD, 1, key, member, self.group_expiry, until=_until())

    async def group_discard(self, group: str, channel: str) -> None:
        key = self._group_key(group)
        member = require_channel(channel)
        await (await self._attachment()).writer.call("ZREM", key, member, until=_until())

    async def group_send(self, group: str, message: Message) -> None:
        key = self._group_key(group)
        payload = pack_message(message)
        attachment = await self._attachment()
        with attachment.outage.counted():
            await self._group_send(attachment, group, key, message, payload)

    async def _group_send(self, attachment: Attachment, group: str, key: str, message: Message, payload: bytes) -> None:
        writer = attachment.writer
        members, epoch = await self._members(attachment, key)
        # A mailbox gets one entry: for the group as a whole, or for each of its channels that is a member.
        entries: dict[str, list[Frame]] = {}
        ordinary: list[str] = []
        for member in members:
            local = split_local(member)
            if local is None:
                ordinary.append(member)
            elif local[1]:
                entries.setdefault(local[0], []).append((MESSAGE, local[1], message))
            else:
                entries.setdefault(member, []).append((GROUP_MESSAGE, group, message))
        until = _until()
        calls = [attachment.sent.send(mailbox, *frames, until=until) for mailbox, frames in entries.items()]
        reached = dict(zip(entries, await asyncio.gather(*calls), strict=True))
        gone = [member for member in members if reached.get(member[: member.find("!") + 1]) is False]
        if gone:
            if await writer.call("ZRANGE", *self._epoch_range(), until=_until()) != epoch:
                raise LayerUnavailable("Redis has lost its data meanwhile: some members may have missed this")
            await writer.call("ZREM", key, *gone, until=_until())
            logger.info("group %r: %d members of processes that are gone were removed", group, len(gone))
        sent = await asyncio.gather(*(self._send_ordinary(writer, channel, payload) for channel in ordinary))
        if not all(sent):
            logger.warning(
                "group %r: %d of %d members were full and missed a message", group, sent.count(False), len(members)
            )

    async def _members(self, attachment: Attachment, key: str) -> tuple[list[str], list[bytes]]:
        """The members of a group, once those who are on the bus have had time to be back in it; and the epoch."""
        loop, writer, until = asyncio.get_running_loop(), attachment.writer, _until()
        while True:
            found: list[Any] = []
            look = writer.write(("EVAL", scripts.GROUP_MEMBERS, 1, key), found.append)
            try:  # in one flush; and the epoch behind, so that it was this one when the members were read
                epoch = await writer.call("ZRANGE", *self._epoch_range(), until=until)
            finally:
                writer.cancel(look)
            if not found or isinstance(found[0], Exception):
                raise LayerUnavailable(f"Redis refused to name the members of a group: {found}")
            now, members = found[0]
            wait = attachment.epoch.use(epoch[0] if epoch else b"", now)
            if wait and loop.time() + wait > until:
                if epoch or not attachment.epoch.is_gone(now):
                    raise LayerUnavailable("Redis has lost its data, and its members are not back: nothing was sent")
                attachment.epoch.forget()  # nobody is on the bus any more, and so nobody misses anything
                wait = 0
            if not wait:
                return [member.decode() for member in members], epoch
            await asyncio.sleep(wait)

    def _epoch_range(self) -> tuple[str, ...]:
        return f"{self.prefix}:processes", "+inf", "+inf", "BYSCORE"

    async def flush(self) -> None:
        attachment = await self._attachment()
        writer = attachment.writer
        attachment.clear()
        prefix = re.sub(r"([*?\[\]\\^-])", r"\\\1", self.prefix)
        for kind in ("channel", "group"):
            cursor: bytes | str = "0"
            while cursor != b"0":
                pattern = f"{prefix}:{kind}:*"
                cursor, keys = await writer.call("SCAN", cursor, "MATCH", pattern, "COUNT", 1000, until=_until())
                if keys:
                    await writer.call("UNLINK", *keys, until=_until())

    async def close(self) -> None:
        with self._lock:
            attachment = self._attachments.pop(asyncio.get_running_loop(), None)
        if attachment is not None:
            await attachment.close()

    async def declare_dead(self, mailbox: str) -> None:
        writer = (await self._attachment()).writer
        until = _until()
        living = await writer.call("EVAL", scripts.DECLARE_DEAD, 1, f"{self.prefix}:processes", mailbox, until=until)
        news = pack((PAYLOAD_VERSION, "", [(DEAD, mailbox)]))
        keys = (writer.mailbox_key(each.decode()) for each in living)
        add = ("NOMKSTREAM", "*", "b", news)
        await asyncio.gather(*(writer.call("XADD", key, *add, repeatable=False, until=until) for key in keys))

    @asynccontextmanager
    async def bus(self, role: str, handler: Handler) -> AsyncIterator[Bus]:
        async with (await self._attachment()).bus(role, handler) as bus:
            yield bus

    def _channel_key(self, channel: str) -> str:
        return f"{self.prefix}:channel:{channel}"

    def _group_key(self, group: str) -> str:
        return f"{self.prefix}:group:{require_group(group)}"

    async def _send_ordinary(self, writer: Writer, channel: str, payload: bytes) -> bool:
        """False if the channel is full."""
        key = self._channel_key(channel)
        sent = await writer.call(
            "EVAL", scripts.SEND, 1, key, payload, self.capacity, self.expiry * 1000, repeatable=False, until=_until()
        )
        return bool(sent)

    async def _attachment(self) -> Attachment:
        running = asyncio.get_running_loop()
        attachment = self._attachments.get(running)
        if attachment is None:
            with self._lock:
                for loop in [loop for loop in self._attachments if loop.is_closed()]:
                    del self._attachments[loop]  # it ended without `close`: its tasks and sockets ended with it
                attachment = self._attachments[running] = Attachment(
                    self.address,
                    self.prefix,
                    self.counts,
                    expiry=self.expiry,
                    group_expiry=self.group_expiry,
                    capacity=self.capacity,
                )
        await attachment.open()
        return attachment


def _until() -> float:
    """When a call gives up, by the event loop's clock."""
    return asyncio.get_running_loop().time() + CALL_SECONDS
