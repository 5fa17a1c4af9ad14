"""Several stores that share the channels, mailboxes and groups among them."""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator

import pytest
import redis

from asgibus.layers import LayerUnavailable, RedisChannelLayer
from asgibus.layers.frames import GROUP_MESSAGE
from asgibus.layers.redis.codec import EntryCodec
from asgibus.layers.redis.config import Address
from asgibus.layers.redis.keys import Keys
from asgibus.layers.redis.store import Shard, Shards
from asgibus.layers.settings import LayerSettings
from support.bus import Recorder, until
from support.redis import RedisServer

pytestmark = [pytest.mark.anyio, pytest.mark.redis]

StartRedis = Callable[..., RedisServer]


def shards(*ports: int) -> Shards:
    counts: Counter[str] = Counter()
    made = [Address(port=port) for port in ports]
    return Shards([Shard(each, Keys("p"), EntryCodec(None, counts), LayerSettings(), counts) for each in made])


def addresses(stores: Shards, names: list[str]) -> list[str]:
    return [str(stores.shard_for(name).address) for name in names]


@pytest.fixture
def servers(start_redis: StartRedis) -> list[RedisServer]:
    return [start_redis() for _ in range(3)]


@pytest.fixture
def hosts(servers: list[RedisServer]) -> list[str]:
    return [server.url for server in servers]


def keys(server: RedisServer) -> set[bytes]:
    with redis.Redis.from_url(server.url, protocol=2) as admin:
        return set(admin.keys("*"))


@pytest.fixture
def empty_one(servers: list[RedisServer]) -> Callable[[RedisServer], None]:
    def empty(server: RedisServer) -> None:
        with redis.Redis.from_url(server.url, protocol=2) as admin:
            admin.flushall()

    return empty


def named(layer: RedisChannelLayer, server: RedisServer, kind: str) -> Iterator[str]:
    """Return names that belong to this server."""
    for number in range(1000):
        if str(layer._shards.shard_for(f"{kind}.{number}").address) == server.url:
            yield f"{kind}.{number}"


def test_rendezvous_hashing_is_the_same_in_every_process() -> None:
    names = [f"name.{number}" for number in range(3000)]
    three = addresses(shards(1, 2, 3), names)
    assert addresses(shards(3, 1, 2), names) == three
    assert all(800 < count < 1200 for count in Counter(three).values())
    four = addresses(shards(1, 2, 3, 4), names)
    moved = [new for old, new in zip(three, four, strict=True) if old != new]
    assert set(moved) == {"redis://127.0.0.1:4"}, "names move to the new store only"
    assert 600 < len(moved) < 900


async def test_each_store_has_a_share_of_the_channels(servers: list[RedisServer], hosts: list[str]) -> None:
    layer = RedisChannelLayer(hosts)
    for number in range(60):
        await layer.send(f"channel.{number}", {"n": number})
        await layer.send(f"channel.{number}", {"n": -number}, delay=100)
        await layer.group_add(f"group.{number}", "channel.1")
    of = [keys(server) for server in servers]
    for kind in (b"channel", b"group"):
        counted = [sum(key.startswith(b"asgibus:%s:" % kind) for key in each) for each in of]
        assert sum(counted) == 60
        assert min(counted) > 8
    for number in range(60):
        together = {
            index for index, each in enumerate(of) for key in each if key.rstrip(b"}").endswith(b"channel.%d" % number)
        }
        assert len(together) == 1, "all keys of a channel are at one store"
    assert (await layer.global_statistics())["messages_pending"] == 120
    await layer.flush()
    assert all(not any(b"channel" in key or b"group" in key for key in keys(server)) for server in servers)
    await layer.close()


async def test_only_the_channels_of_a_killed_store_fail(servers: list[RedisServer], hosts: list[str]) -> None:
    layer = RedisChannelLayer(hosts, wait=1.5)
    down, other = servers[0], servers[1]
    lost, kept = next(named(layer, down, "channel")), next(named(layer, other, "channel"))
    group, lost_group = next(named(layer, other, "group")), next(named(layer, down, "group"))
    for each in (lost, kept):
        await layer.group_add(group, each)
        await layer.group_add(lost_group, each)
    await asyncio.to_thread(down.kill)
    await layer.send(kept, {"n": 1})
    assert await layer.receive(kept) == {"n": 1}
    new_layer = RedisChannelLayer(hosts)
    for _ in range(5):
        local = await RedisChannelLayer.new_channel(new_layer)
        await new_layer.send(local, {"n": 2})
        assert await new_layer.receive(local) == {"n": 2}
    failing = [
        asyncio.create_task(call)
        for call in (layer.send(lost, {}), layer.group_send(group, {"n": 3}), layer.group_send(lost_group, {}))
    ]
    assert await asyncio.wait_for(layer.receive(kept), 30) == {"n": 3}, "the others of the group have it at once"
    for failed in await asyncio.gather(*failing, return_exceptions=True):
        assert isinstance(failed, LayerUnavailable)
    await asyncio.to_thread(down.start)
    await layer.send(lost, {"n": 4})
    assert await layer.receive(lost) == {"n": 4}
    for each in (layer, new_layer):
        await each.close()


async def test_memberships_are_restored_in_a_store_that_lost_its_data(
    servers: list[RedisServer], hosts: list[str], empty_one: Callable[[RedisServer], None]
) -> None:
    """The bus restores group memberships of interface servers in a store that lost its data and holds only groups."""
    layer, other, reader = RedisChannelLayer(hosts), RedisChannelLayer(hosts), Recorder()
    async with layer.bus("a", reader) as bus:
        home = str(layer._shards.home.address)
        away = next(server for server in servers if server.url != home)
        group = next(named(layer, away, "group"))
        await bus.join_group(group)
        await other.group_send(group, {"n": 0})
        await until(lambda: len(reader.frames) == 1)
        for number, lose in enumerate((lambda: empty_one(away), lambda: (away.kill(), away.start())), start=1):
            await asyncio.to_thread(lose)
            await other.group_send(group, {"n": number})  # the call waits until the members are back
            await until(lambda count=number + 1: len(reader.frames) == count)  # type: ignore[misc]
        assert [frame[2]["n"] for frame in reader.frames if frame[0] == GROUP_MESSAGE] == [0, 1, 2]
    assert not any(b"group" in key or b"processes" in key or b"joined" in key for key in keys(away))
    for each in (layer, other):
        await each.close()


async def test_a_closed_layer_leaves_no_lease_and_no_membership(servers: list[RedisServer], hosts: list[str]) -> None:
    """A layer gives back the leases that its channels have at the stores of their groups, whatever its own store."""
    for _ in range(5):  # layers with mailboxes at random stores
        layer = RedisChannelLayer(hosts)
        channel = await layer.new_channel()
        for server in servers:
            await layer.group_add(next(named(layer, server, "group")), channel)
        await layer.close()
        assert not any(keys(server) for server in servers)


async def test_taken_messages_are_at_the_store_of_their_channel(servers: list[RedisServer], hosts: list[str]) -> None:
    layer = RedisChannelLayer(hosts)
    channels = [next(named(layer, server, "work")) for server in servers]
    async with layer.bus("w", Recorder()) as first:
        for channel in channels:
            await layer.send(channel, {"n": 1})
            (delivery,) = await first.take(channel, 5)
            assert delivery.attempt == 1
    async with layer.bus("w", Recorder()) as second:
        for channel in channels:
            (delivery,) = await second.take(channel, 5)
            assert (delivery.attempt, delivery.message) == (2, {"n": 1})
            second.acknowledge(delivery)
    assert not any(b"taken" in key for server in servers for key in keys(server))
    await layer.close()
