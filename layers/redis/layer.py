"""The channel layer on Redis, as apps see it.

Everything that belongs to an event loop (connections, tasks, mailboxes) belongs to a `StoreClient`, so that one layer
object serves several loops, one after another or at once. The calls of a loop that may be about to end are made in the
background loop of the layer, where the mailbox of the process-local channels is read, too.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial, wraps
from typing import Any, ParamSpec, TypeVar

from asgibus.layers.channel_layer import ChannelLayer
from asgibus.layers.codec import pack_message
from asgibus.layers.contract import Bus, Handler, Message, Statistics
from asgibus.layers.errors import ChannelFull, ForeignChannel, LayerUnavailable
from asgibus.layers.frames import MEMBERSHIP
from asgibus.layers.names import has_channels, parse_channel, require_channel, require_group, split_local
from asgibus.layers.over_capacity import OverCapacity
from asgibus.layers.presence import PresentCount, PresentPage
from asgibus.layers.redis import scripts
from asgibus.layers.redis.bus import RedisBus
from asgibus.layers.redis.client import ignore_reply
from asgibus.layers.redis.codec import Encryption, EntryCodec
from asgibus.layers.redis.config import DEFAULT_HOST, Hosts, read_hosts
from asgibus.layers.redis.deaths import declare_dead
from asgibus.layers.redis.groups import GroupSender
from asgibus.layers.redis.heartbeat import SILENT_SECONDS
from asgibus.layers.redis.local.channels import BackgroundLoop, LocalChannels
from asgibus.layers.redis.pipeline import call_until
from asgibus.layers.redis.presence.reader import PresenceReader
from asgibus.layers.redis.presence.stores import LeaseReader, Stores
from asgibus.layers.redis.store import Shard, Shards, StoreClient
from asgibus.layers.redis.streams.store import RedisStreams
from asgibus.layers.settings import (
    BACKLOG_BYTES,
    CAPACITY,
    EXPIRY_SECONDS,
    GROUP_EXPIRY_SECONDS,
    LayerSettings,
    LimitsByPattern,
    Pattern,
    StreamLimits,
    require_delay,
)
from asgibus.layers.streams import Stream
from asgibus.layers.streams.messages import StreamMessages
from asgibus.layers.streams.past import send_to_group

logger = logging.getLogger("asgibus.layers")

EMPTIED = ("channel", "delayed", "taken", "counts", "group", "stream", "stream-state", "stream-ids", "users", "present")
"""The kinds of keys that `flush` deletes."""

P = ParamSpec("P")
T = TypeVar("T")


def _on_long_lived_loop(method: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    """Run a method in the background loop of its layer if the running event loop may be about to end.

    Not for `receive`: a call that is cancelled on its way back from another loop would lose its message.
    """

    @wraps(method)
    async def call(*args: P.args, **kwargs: P.kwargs) -> T:
        layer: Any = args[0]
        if layer.is_long_lived(asyncio.get_running_loop()):
            return await method(*args, **kwargs)
        work: T = await layer.background_loop.run(partial(method, *args, **kwargs))
        return work

    return call


class RedisChannelLayer(ChannelLayer):
    """A channel layer between processes, over Redis 7.0 or newer, or Valkey."""

    extensions = (*ChannelLayer.extensions, "streams", "presence")

    def __init__(
        self,
        hosts: Hosts | None = DEFAULT_HOST,
        *,
        prefix: str = "asgibus",
        expiry: float = EXPIRY_SECONDS,
        group_expiry: float = GROUP_EXPIRY_SECONDS,
        capacity: int = CAPACITY,
        channel_capacity: Mapping[Pattern, int] | None = None,
        stream_limits: LimitsByPattern | None = None,
        wait: float | None = None,
        backlog: int = BACKLOG_BYTES,
        symmetric_encryption_keys: Sequence[str | bytes] = (),
    ) -> None:
        """Make a layer. No connection is opened until the layer is used.

        Args:
            hosts: A URL as in `open_layer`, or a list of hosts as in the `CHANNEL_LAYERS` of channels_redis.
            prefix: The beginning of every key in Redis. Processes with the same prefix belong together.
            expiry: Seconds after which an unread message is dropped; 60 by default.
            group_expiry: Seconds after which a channel leaves a group, unless it was added again; a day by default.
            capacity: How many unread messages a channel holds; 100 by default.
            channel_capacity: Other capacities, by glob or compiled pattern of the channel's name. The first match
                counts.
            stream_limits: Other limits of streams, by glob or compiled pattern of the stream's name: StreamLimits, or a
                dict of `entries`, `bytes` and `kept`. The first match counts.
            wait: Seconds that a call waits for a Redis that is away, before it raises LayerUnavailable. By default 5,
                and in a worker its `--resume-timeout`.
            backlog: Bytes of messages that wait for Redis at once, 16 MiB by default. Further calls wait until there is
                room.
            symmetric_encryption_keys: Secrets. Data in Redis is encrypted with the first one, and decrypted with any of
                them.

        Raises:
            ValueError: An option is not valid.
        """
        self.prefix = prefix
        self.settings = LayerSettings.of(
            expiry=expiry,
            group_expiry=group_expiry,
            capacity=capacity,
            channel_capacity=channel_capacity,
            wait=wait,
            backlog=backlog,
            stream_limits=stream_limits,
        )
        self.counts = Counter()
        over_capacity = OverCapacity(self.counts)
        self._entries = EntryCodec(_encryptor(symmetric_encryption_keys), self.counts)
        stores = read_hosts(hosts)
        if "{" in prefix and any(store.tag for store in stores):
            # The first part of a key in braces determines its slot; it must be the tag of its store.
            raise ValueError(f"on a cluster, a layer's prefix holds no '{{', as {prefix!r} does")
        self._shards = Shards([Shard(store, prefix, self._entries, self.settings, self.counts) for store in stores])
        self.background_loop = BackgroundLoop(self._shards.close)
        self._groups = GroupSender(self._shards.client_of, self._entries, over_capacity, self.settings.capacity_of)
        shards = self._shards
        reached = Stores(shards.home.client, shards.client_of, lambda: (shard.client() for shard in shards))
        self._presence = PresenceReader(reached, LeaseReader(reached, round(SILENT_SECONDS * 1000)), self._groups.send)
        self._local = LocalChannels(shards, self.background_loop, over_capacity, self._presence)
        messages = StreamMessages(self, self._local.group_add, self._local.group_discard)
        self._streams = RedisStreams(self, messages, shards, self._entries, self.counts)
        self._local.streams = self._streams

    @property
    def client_prefix(self) -> str:
        """The part before the `!` in the names of this process's channels, after their own prefix.

        The name and the meaning are those of channels_redis.
        """
        return self._local.process

    @property
    def address(self) -> str:
        """The addresses of the stores, without passwords."""
        return ", ".join(dict.fromkeys(str(shard.address) for shard in self._shards))

    @_on_long_lived_loop
    async def send(self, channel: str, message: Message, *, delay: float = 0.0) -> None:
        local = parse_channel(channel)
        require_delay(delay)
        payload = pack_message(message)
        capacity = self.settings.capacity_of(channel)
        until = self.send_until()
        client = await self._shards.client_of(local[0] if local else channel, until)
        try:
            room = await client.backlog.enter(len(payload), until)
            try:
                if local is None:
                    full = not await client.send(channel, payload, delay, until)
                else:
                    sent = await client.mailboxes.send(local[0], (local[1],), payload, capacity, until, delay)
                    full = sent is False
                    if sent is None:
                        logger.info("a message to %s was dropped: its process is gone", channel)
            finally:
                client.backlog.leave(room)
        except LayerUnavailable as error:
            client.outage.failed(error)
            raise
        if full:
            self.counts["channel full"] += 1
            raise ChannelFull(channel, capacity)

    async def receive(self, channel: str) -> Message:
        local = parse_channel(channel)
        if local is None:
            return await (await self._shards.client_of(channel)).reader.receive(channel)
        if not self._local.has(local[0]):
            raise ForeignChannel(channel)
        inbox = self._local.get_inbox() or await self._local.open()
        return await inbox.receive(local[1])

    async def new_channel(self, prefix: str = "specific") -> str:
        return await self._local.new(prefix)

    async def group_add(self, group: str, channel: str) -> None:
        local = split_local(require_channel(channel))
        if local is not None and self._local.has(local[0]):
            await self._local.group_add(require_group(group), channel)
        else:
            await self._group_add(require_group(group), channel, local)

    @_on_long_lived_loop
    async def _group_add(self, group: str, channel: str, local: tuple[str, str] | None) -> None:
        """Add a channel of another process, or an ordinary channel."""
        until = self.send_until()
        await self._notify_owner(group, channel, local, True, until)
        client = await self._shards.client_of(group, until)
        arguments = client.keys.group(group), channel, f"{self.group_expiry:f}"
        await client.pipeline.call("EVAL", scripts.GROUP_ADD, 1, *arguments, until=until)

    async def group_discard(self, group: str, channel: str) -> None:
        local = split_local(require_channel(channel))
        if local is not None and self._local.has(local[0]):
            await self._local.group_discard(require_group(group), channel)
        else:
            await self._group_discard(require_group(group), channel, local)

    @_on_long_lived_loop
    async def _group_discard(self, group: str, channel: str, local: tuple[str, str] | None) -> None:
        """Remove a channel of another process, or an ordinary channel."""
        until = self.send_until()
        await self._notify_owner(group, channel, local, False, until)
        client = await self._shards.client_of(group, until)
        await client.pipeline.call("ZREM", client.keys.group(group), channel, until=until)

    async def _notify_owner(
        self, group: str, channel: str, local: tuple[str, str] | None, joins: bool, until: float
    ) -> None:
        """Let the process of a channel note a membership or its end: it restores what the store loses."""
        if local is not None and has_channels(local[0]):
            client = await self._shards.client_of(local[0], until)
            await client.outbox.send(local[0], client.outbox.pack(local[0], (MEMBERSHIP, group, channel, joins)), until)

    async def group_send(
        self,
        group: str,
        message: Message,
        *,
        keep: int | None = None,
        id: str | None = None,  # noqa: A002
        placeholder: str | None = None,
    ) -> bool:
        return await send_to_group(self, self._streams, group, message, keep, id, placeholder)

    @_on_long_lived_loop
    async def send_to_group(self, group: str, message: Message) -> None:
        """Send a message to every member of a group, of an app or of the layer itself."""
        await self._groups.send(group, message, self.send_until())

    def gauges(self) -> dict[str, int]:
        return self._streams.messages.gauges()

    def any_stream(self, name: str, limits: StreamLimits | None = None) -> Stream:
        limits = self.settings.limits_of(name) if limits is None else limits
        return Stream(self._streams, name, limits, self.settings.wait)

    @_on_long_lived_loop
    async def _present(self, group: str, cursor: str | None) -> PresentPage:
        return await self._presence.page(group, cursor)

    @_on_long_lived_loop
    async def _present_count(self, group: str) -> PresentCount:
        return await self._presence.count(group)

    async def channel_statistics(self, channel: str) -> Statistics:
        local = parse_channel(channel)
        if local is None:
            return await self._ordinary_statistics(channel)
        if not self._local.has(local[0]):
            raise ForeignChannel(channel)
        return (self._local.get_inbox() or await self._local.open()).statistics(local[1])

    @_on_long_lived_loop
    async def _ordinary_statistics(self, channel: str) -> Statistics:
        client = await self._shards.client_of(channel)
        keys = client.keys
        names = keys.messages(channel), keys.delayed(channel), keys.counts(channel)
        expiry = round(self.expiry * 1000)
        sent, pending, age, full = await client.pipeline.call(
            "EVAL", scripts.CHANNEL_STATISTICS, 3, *names, expiry, until=call_until()
        )
        return Statistics(
            messages_count=sent, messages_pending=pending, messages_max_age=age / 1000, channel_full_count=full
        )

    @_on_long_lived_loop
    async def global_statistics(self) -> Statistics:
        found = {shard.keys.counted(key.decode(errors="replace")) async for shard, key in self._scan("counts")}
        channels = self._entries.valid_names("counts", (channel.encode() for channel in found))
        each = [await self._ordinary_statistics(channel) for channel in channels if "!" not in channel]
        return Statistics(
            messages_count=sum(one["messages_count"] for one in each),
            messages_pending=sum(one["messages_pending"] for one in each),
            messages_max_age=max((one["messages_max_age"] for one in each), default=0.0),
            channel_full_count=sum(one["channel_full_count"] for one in each),
        )

    async def _scan(self, *kinds: str) -> AsyncIterator[tuple[Shard, bytes]]:
        """Yield all keys of these kinds, each with its store."""
        for shard in self._shards:
            pipeline = (await shard.client()).pipeline
            for pattern in shard.keys.patterns(*kinds):
                cursor: bytes | str = "0"
                while cursor != b"0":
                    cursor, keys = await pipeline.call(
                        "SCAN", cursor, "MATCH", pattern, "COUNT", 1000, until=call_until()
                    )
                    for key in keys:
                        yield shard, key

    @_on_long_lived_loop
    async def flush(self) -> None:
        clients = [await shard.client() for shard in self._shards]
        await self._local.clear()
        async for shard, key in self._scan(*EMPTIED):
            (await shard.client()).pipeline.write(("UNLINK", key), ignore_reply)
        for client in clients:
            await client.pipeline.posted(call_until())

    async def close(self) -> None:
        await self._shards.close()
        await self.background_loop.close()

    async def close_pools(self) -> None:
        await self._shards.close()
        if self._local.get_inbox() is None:
            await self.background_loop.close()

    async def run(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Await `work()` in the background loop if the running event loop may be about to end, else here."""
        if self.is_long_lived(asyncio.get_running_loop()):
            return await work()
        return await self.background_loop.run(work)

    def is_long_lived(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Return whether an event loop has connections of its own, or has made calls for long enough to get some."""
        for shard in self._shards:
            if shard.serves(loop):
                return True
        return not self.background_loop.should_run_here(loop)

    @_on_long_lived_loop
    async def declare_dead(self, mailbox: str) -> None:
        client = await self._shards.home.client()
        key = client.keys.processes
        _, members = await client.pipeline.call("EVAL", scripts.GROUP_MEMBERS, 1, key, until=call_until())
        live = client.entries.valid_names(key, (each for each in members if each.endswith(b"!")))
        await declare_dead(client, mailbox, live)

    async def connect(self) -> None:
        await self._shards.home.client()

    @asynccontextmanager
    async def bus(self, role: str, handler: Handler) -> AsyncIterator[Bus]:
        home = self._shards.home
        mailbox = self._shards.new_mailbox(role, home)
        bus = self._new_bus(await home.client(), mailbox, handler)
        try:
            await bus.open()
            self._streams.on_server(mailbox)
            yield bus
        finally:
            await self._streams.on_server_stopped(mailbox)
            await bus.close()

    def _new_bus(self, client: StoreClient, mailbox: str, handler: Handler) -> RedisBus:
        end_streams_of = self._streams.end_streams_of
        return RedisBus(client, self._shards, mailbox, handler, self._presence, end_streams_of=end_streams_of)

    @asynccontextmanager
    async def moved_bus(self, identity: Mapping[str, Any], handler: Handler) -> AsyncIterator[Bus]:
        mailbox = require_channel(identity["mailbox"])
        bus = self._new_bus(await self._shards.home.client(), mailbox, handler)
        try:
            await bus.open_frozen(identity)
            yield bus
        finally:
            await bus.close()

    def send_until(self) -> float:
        """Return when a call that sends gives up, by the event loop's clock."""
        return asyncio.get_running_loop().time() + self.settings.wait


def _encryptor(encryption_keys: Sequence[str | bytes]) -> Encryption | None:
    if isinstance(encryption_keys, str | bytes):
        raise ValueError("encryption keys are a list of secrets, of which the first encrypts")
    if not encryption_keys:
        return None
    try:
        from asgibus.layers.redis.encryption import Encryptor  # noqa: PLC0415  # only those with keys need its package
    except ImportError:
        raise ValueError("encryption keys need the package cryptography: pip install 'asgibus[encryption]'") from None
    return Encryptor(encryption_keys)
