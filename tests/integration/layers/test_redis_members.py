"""Process-local channels in groups, as Channels consumers use them, while Redis loses its data."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import redis

from asgibus.layers import RedisChannelLayer
from asgibus.layers.redis.local import inbox
from support.bus import until
from support.cluster import Cluster
from support.redis import RedisServer

pytestmark = [pytest.mark.anyio, pytest.mark.redis, pytest.mark.usefixtures("regroup")]

StartRedis = Callable[..., RedisServer]


@asynccontextmanager
async def layers(hosts: Any, count: int = 2, **options: Any) -> AsyncIterator[list[RedisChannelLayer]]:
    """Provide layers over one store, as in separate processes."""
    layers_made = [RedisChannelLayer(hosts, **options) for _ in range(count)]
    try:
        yield layers_made
    finally:
        for layer in layers_made:
            await layer.close()


async def receive_number(layer: RedisChannelLayer, channel: str) -> Any:
    return (await asyncio.wait_for(layer.receive(channel), 20))["n"]


def members(admin: "redis.Redis[bytes]", group: str = "group") -> set[str]:
    return {member.decode() for member in admin.zrange(f"asgibus:group:{group}", 0, -1)}


async def test_members_join_again_after_a_flush_before_a_broadcast(redis_url: str, admin: "redis.Redis[bytes]") -> None:
    async with layers(redis_url, 3) as (one, two, sender):
        channels = {await layer.new_channel(prefix): layer for layer in (one, two) for prefix in ("first", "second")}
        for channel, layer in channels.items():
            await layer.group_add("group", channel)
        await sender.group_send("group", {"n": "before"})
        admin.flushall()
        await sender.group_send("group", {"n": "behind"})
        for channel, layer in channels.items():
            assert [await receive_number(layer, channel) for _ in range(2)] == ["before", "behind"]


async def test_members_join_again_after_a_restart_without_data(start_redis: StartRedis) -> None:
    server = start_redis()
    async with layers(server.url) as (owner, sender):
        channel = await owner.new_channel()
        await owner.group_add("group", channel)
        await sender.group_send("group", {"n": 0})
        for number in range(1, 3):
            await asyncio.to_thread(server.kill)
            await asyncio.to_thread(server.start)
            await sender.group_send("group", {"n": number})
        assert [await receive_number(owner, channel) for _ in range(3)] == [0, 1, 2]


async def test_members_join_again_after_a_start_from_an_old_snapshot(start_redis: StartRedis, tmp_path: Path) -> None:
    server = start_redis("--dbfilename", "old.rdb", "--dir", str(tmp_path))
    async with layers(server.url) as (owner, sender):
        old, new = await owner.new_channel(), await owner.new_channel()
        await owner.group_add("group", old)
        with redis.Redis.from_url(server.url, protocol=2) as admin:
            admin.save()
        shutil.copy(tmp_path / "old.rdb", tmp_path / "kept")
        await owner.group_add("group", new)
        await asyncio.to_thread(server.kill)
        shutil.copy(tmp_path / "kept", tmp_path / "old.rdb")
        await asyncio.to_thread(server.start)
        with redis.Redis.from_url(server.url, protocol=2) as admin:
            await until(lambda: members(admin) == {old, new})
        await sender.group_send("group", {"n": 1})
        assert await receive_number(owner, new) == 1


async def test_discarded_channels_do_not_join_again(redis_url: str, admin: "redis.Redis[bytes]") -> None:
    async with layers(redis_url) as (owner, other):
        kept, discarded, removed = [await owner.new_channel() for _ in range(3)]
        for channel in (kept, discarded, removed):
            await owner.group_add("group", channel)
        await owner.group_discard("group", discarded)
        await other.group_discard("group", removed)
        await other.send(removed, {"n": 0})
        assert await receive_number(owner, removed) == 0  # the owner processes its removal first
        admin.flushall()
        await until(lambda: kept in members(admin))
        await owner.send(kept, {"n": 1})
        assert members(admin) == {kept}


async def test_a_channel_added_by_another_process_joins_again(redis_url: str, admin: "redis.Redis[bytes]") -> None:
    async with layers(redis_url) as (owner, other):
        channel = await owner.new_channel()
        await other.group_add("group", channel)
        await other.send(channel, {"n": 0})
        assert await receive_number(owner, channel) == 0
        admin.flushall()
        await other.group_send("group", {"n": 1})
        assert await receive_number(owner, channel) == 1


@pytest.mark.usefixtures("short_leases")  # the heartbeat restores memberships
async def test_a_restored_membership_keeps_its_end(redis_url: str, admin: "redis.Redis[bytes]") -> None:
    async with layers(redis_url, 1, group_expiry=2.5) as (owner,):
        channel = await owner.new_channel()
        await owner.group_add("group", channel)
        (_, end), *_ = admin.zrange("asgibus:group:group", 0, -1, withscores=True)
        await asyncio.sleep(0.6)  # by the clock of Redis, which a test cannot set
        admin.flushall()
        await until(lambda: members(admin))
        (_, restored), *_ = admin.zrange("asgibus:group:group", 0, -1, withscores=True)
        assert abs(restored - end) < 400
        await until(lambda: not admin.exists("asgibus:group:group"))
        admin.flushall()
        await until(lambda: admin.exists(f"asgibus:mailbox:{channel.partition('!')[0]}!"))
        await owner.send(channel, {})
        assert members(admin) == set()


async def test_an_abandoned_channel_does_not_join_again(
    redis_url: str, admin: "redis.Redis[bytes]", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inbox, "ABANDONED_SECONDS", 0.3)
    monkeypatch.setattr(inbox, "FORGET_SECONDS", 0.1)
    async with layers(redis_url, 1) as (owner,):
        read, abandoned = await owner.new_channel(), await owner.new_channel()
        reading = asyncio.create_task(owner.receive(read))
        for channel in (read, abandoned):
            await owner.group_add("group", channel)
        await asyncio.sleep(0.6)  # longer than ABANDONED_SECONDS, without a reader
        admin.flushall()
        await until(lambda: read in members(admin))
        await owner.send(read, {"n": 1})
        assert members(admin) == {read}
        assert (await reading)["n"] == 1


async def test_members_join_again_at_the_store_of_their_group(start_redis: StartRedis) -> None:
    servers = [start_redis() for _ in range(3)]
    async with layers([server.url for server in servers]) as (owner, sender):
        channels = [await owner.new_channel() for _ in range(2)]
        groups = [f"group.{number}" for number in range(12)]
        for group in groups:
            for channel in channels:
                await owner.group_add(group, channel)
            await sender.group_send(group, {"n": group})
        for channel in channels:
            assert [await receive_number(owner, channel) for _ in groups] == groups
        home = str(owner._shards.shard_for(f"{channels[0].partition('!')[0]}!").address)
        for server in servers:
            if server.url != home:  # the mailbox stays
                with redis.Redis.from_url(server.url, protocol=2) as admin:
                    admin.flushall()
        for group in groups:
            await sender.group_send(group, {"n": group})
        for channel in channels:
            assert [await receive_number(owner, channel) for _ in groups] == groups


async def test_members_join_again_in_a_cluster(tmp_path: Path) -> None:
    binary = shutil.which("redis-server")
    if binary is None:
        pytest.skip("a cluster needs the redis-server binary")
    with Cluster(binary, tmp_path) as cluster:
        async with layers(cluster.url) as (owner, sender):
            channel = await owner.new_channel()
            groups = [f"group.{number}" for number in range(12)]
            for group in groups:
                await owner.group_add(group, channel)
                await sender.group_send(group, {"n": group})
            assert [await receive_number(owner, channel) for _ in groups] == groups
            for server in cluster.servers:
                cluster.admin(server).flushall()
            for group in groups:
                await sender.group_send(group, {"n": group})
            assert [await receive_number(owner, channel) for _ in groups] == groups


async def test_thousands_of_memberships_are_restored(redis_url: str, admin: "redis.Redis[bytes]") -> None:
    async with layers(redis_url, 1) as (owner,):
        channels = [await owner.new_channel() for _ in range(2000)]
        for start in range(0, len(channels), 250):
            await asyncio.gather(*(owner.group_add("group", each) for each in channels[start : start + 250]))
        admin.flushall()
        await until(lambda: admin.zcard("asgibus:group:group") == len(channels))
