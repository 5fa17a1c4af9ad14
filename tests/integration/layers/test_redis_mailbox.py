"""A mailbox that is deleted, or replaced by a failover, under a flow of messages: each is read once."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis

from asgibus.layers import LayerUnavailable, RedisChannelLayer
from asgibus.layers.codec import pack, pack_message
from asgibus.layers.frames import FIRST_PROTOCOL_KIND, LOCAL_MESSAGES, MESSAGE
from asgibus.layers.names import split_local
from asgibus.layers.redis.pipeline import PAYLOAD_VERSION
from support.bus import until
from support.peers import Place, place
from support.redis import RedisServer
from support.tcp_proxy import TcpProxy

pytestmark = pytest.mark.anyio

StartRedis = Callable[..., RedisServer]
KIND = FIRST_PROTOCOL_KIND


class Flood:
    """Numbered messages to a mailbox, as fast as possible. `sent`: their number so far."""

    def __init__(self, layer: RedisChannelLayer, mailbox: str) -> None:
        self._layer = layer
        self._mailbox = mailbox
        self.sent = 0

    async def run(self) -> None:
        while True:
            with suppress(LayerUnavailable):  # written or not: the test checks that none is read twice
                await self._layer.send(self._mailbox + "local", {"n": self.sent})
            self.sent += 1

    async def wait_for_more(self) -> None:
        """Wait until 50 more are sent."""
        sent = self.sent
        await until(lambda: self.sent > sent + 50)


@asynccontextmanager
async def flood(url: str, mailbox: str) -> AsyncIterator[Flood]:
    layer = RedisChannelLayer(url)
    flood = Flood(layer, mailbox)
    running = asyncio.create_task(flood.run())
    try:
        yield flood
    finally:
        running.cancel()
        await asyncio.wait([running])
        await layer.close()


def numbers(one: Place) -> list[int]:
    """Return the numbers of the messages that were read, in order."""
    return [frame[2]["n"] for frame in one.handler.frames if frame[0] == MESSAGE]


@pytest.mark.usefixtures("regroup")
@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.long)])
async def test_a_mailbox_is_deleted_repeatedly_under_load(count: int, redis_url: str) -> None:
    with redis.Redis.from_url(redis_url, protocol=2) as admin:
        async with place(redis_url, "asgibus") as one, flood(redis_url, one.mailbox) as sending:
            for times in range(1, count + 1):
                admin.flushall()
                await until(lambda times=times: one.handler.interruptions == times)  # type: ignore[misc]
                await sending.wait_for_more()
                await until(lambda: max(numbers(one), default=0) > sending.sent - 20)
            assert numbers(one) == sorted(set(numbers(one)))
            assert all(frames for _, frames in one.handler.batches)


async def test_frames_read_before_a_mailbox_vanished_are_handled(redis_url: str) -> None:
    """Frames read from a deleted mailbox are handled late, and its new mailbox is read from the beginning."""
    parts = urlsplit(redis_url)
    with (
        redis.Redis.from_url(redis_url, protocol=2) as admin,
        TcpProxy((parts.hostname or "", parts.port or 6379)) as proxy,
    ):
        async with place(f"{proxy.url}{parts.path}", "asgibus") as one, place(redis_url, "asgibus") as two:
            key = f"asgibus:mailbox:{one.mailbox}"
            await asyncio.to_thread(proxy.blackhole, "!mailbox")
            ahead = (admin.time()[0] + 3600) * 1000  # by a clock that has been put back since
            admin.xadd(key, {"b": pack((PAYLOAD_VERSION, two.mailbox, ((KIND, "before"),)))}, id=f"{ahead}-0")
            tries = unblocked(admin)
            admin.flushall()
            await until(lambda: unblocked(admin) >= tries + 5)
            assert one.handler.frames == []
            assert not admin.exists(key)
            await asyncio.to_thread(proxy.heal)
            await until(lambda: one.handler.interruptions)
            two.bus.post(one.mailbox, (KIND, "after"))
            await until(lambda: len(one.handler.frames) >= 2)
            await two.layer.send(one.mailbox + "local", {"n": 0})
            await until(lambda: numbers(one))
            assert one.handler.frames == [(KIND, "before"), (KIND, "after"), (MESSAGE, "local", {"n": 0})]


def unblocked(admin: Any) -> int:
    return int(admin.info("commandstats").get("cmdstat_client|unblock", {"calls": 0})["calls"])


async def test_delayed_messages_arrive_in_time_after_a_clock_step_back(redis_url: str) -> None:
    """Delayed messages arrive in time, although the ids of a stream continue from the later time."""
    layer = RedisChannelLayer(redis_url)
    channel = await layer.new_channel()
    with redis.Redis.from_url(redis_url, protocol=2) as admin:
        async with place(redis_url, "asgibus") as one:
            ahead = f"{admin.time()[0] + 3600}000-0"
            for key in admin.keys("asgibus:mailbox:*"):
                admin.xadd(key, {"b": pack((PAYLOAD_VERSION, "", ()))}, id=ahead)
            await layer.send(channel, {"n": 1}, delay=0.05)
            await layer.send(one.mailbox + "local", {"n": 2}, delay=0.05)
            assert await asyncio.wait_for(layer.receive(channel), 10) == {"n": 1}
            await until(lambda: numbers(one) == [2])
    await layer.close()


async def test_messages_with_a_capacity_of_zero_are_dropped(redis_url: str) -> None:
    layer = RedisChannelLayer(redis_url)
    channel = await layer.new_channel()
    client = await layer._shards.home.client()
    mailbox, part = split_local(channel) or ("", "")
    entry = client.outbox.pack(mailbox, (LOCAL_MESSAGES, [part], pack_message({"n": 1}), 0.0, 0))
    await client.outbox.send(mailbox, entry, asyncio.get_running_loop().time() + 5)
    await until(lambda: layer.counts["damaged entry"] == 1)
    await layer.send(channel, {"n": 2})
    assert await asyncio.wait_for(layer.receive(channel), 10) == {"n": 2}
    await layer.close()


async def test_a_failover_that_is_noticed_late_repeats_no_frame(start_redis: StartRedis) -> None:
    """No frame is repeated if a process reads and writes on the new master before it notices the failover."""
    master, replica = (start_redis("--repl-diskless-sync-delay", "0") for _ in range(2))
    with (
        TcpProxy(("127.0.0.1", master.port)) as proxy,
        redis.Redis.from_url(replica.url, protocol=2) as admin,
    ):
        async with place(proxy.url, "asgibus") as one:
            await one.layer.send(one.mailbox + "local", {"n": -1})
            key = f"asgibus:mailbox:{one.mailbox}"
            admin.replicaof("127.0.0.1", master.port)
            await until(lambda: admin.info("replication")["master_link_status"] == "up" and admin.exists(key))
            await until(lambda: numbers(one) == [-1])
            admin.replicaof("NO", "ONE")
            proxy.target = ("127.0.0.1", replica.port)
            await asyncio.to_thread(proxy.delay, 0.2, "writer")
            await asyncio.to_thread(master.kill)
            async with flood(replica.url, one.mailbox) as sending:
                await until(lambda: one.handler.interruptions)
                await sending.wait_for_more()
                await until(lambda: max(numbers(one)) > sending.sent - 20)
            await until(lambda: max(numbers(one)) >= sending.sent - 1)
            assert numbers(one)[: sending.sent] == list(range(-1, sending.sent - 1))
            assert numbers(one) == sorted(set(numbers(one)))


@pytest.mark.usefixtures("regroup")
async def test_messages_sent_just_after_a_loss_of_data_arrive(start_redis: StartRedis) -> None:
    """Messages wait for a live process whose mailbox is missing, until the process has made a new one."""
    server = start_redis()
    owner, sender = RedisChannelLayer(server.url), RedisChannelLayer(server.url)
    channel, gone = await owner.new_channel(), "specific.0123456789abcdef!1"
    await sender.new_channel()
    with redis.Redis.from_url(server.url, protocol=2) as admin:
        admin.flushall()
    await asyncio.gather(*(sender.send(channel, {"n": number}) for number in range(5)), sender.send(gone, {}))
    received = [(await asyncio.wait_for(owner.receive(channel), 10))["n"] for _ in range(5)]
    assert sorted(received) == list(range(5))
    for each in (owner, sender):
        await each.close()
