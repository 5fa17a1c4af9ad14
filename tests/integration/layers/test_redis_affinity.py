"""Offers by key in Redis: one key has one claimant, and no offer is lost or repeated when that one ends."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import redis

from asgibus.layers import RedisChannelLayer
from asgibus.layers.redis import assignments
from asgibus.layers.redis.codec import FIRST_BYTE
from layers.test_affinity import LIFETIME, POOL, claim, key, offer, start
from support.bus import Recorder, until
from support.cluster import Cluster
from support.tcp_proxy import TcpProxy
from support.topologies import redis_binary

pytestmark = pytest.mark.anyio


@pytest.fixture
async def layer(redis_url: str) -> AsyncIterator[RedisChannelLayer]:
    layer = RedisChannelLayer(redis_url)
    yield layer
    await layer.close()


async def test_who_announces_before_the_offers_claims_them_soon(layer: RedisChannelLayer) -> None:
    async with AsyncExitStack() as stack:
        interface = await stack.enter_async_context(layer.bus("interface", Recorder()))
        worker = await start(stack, layer)
        claiming = asyncio.ensure_future(worker.bus.claim(["shared"], 10))
        await asyncio.sleep(0.1)
        assert (await offer(interface, "a")).claimant == ""
        interface.announce_keys([POOL])
        await worker.bus.announce(POOL, "app", 0)
        assert (await offer(interface, "a", ("now",))).claimant == worker.bus.mailbox
        async with asyncio.timeout(1):  # the blocked read would last for two seconds
            assert [each.entry for each in await claiming] == [("now",)]


async def test_keys_expire(layer: RedisChannelLayer, admin: "redis.Redis[bytes]") -> None:
    async with AsyncExitStack() as stack:
        interface = await stack.enter_async_context(layer.bus("interface", Recorder()))
        interface.announce_keys([POOL])
        workers = [await start(stack, layer) for _ in range(2)]
        first = (await offer(interface, "a", lifetime=0.3)).claimant
        kept = (await offer(interface, "b", lifetime=0.3)).claimant
        assert {first, kept} == {worker.bus.mailbox for worker in workers}
        interface.renew_keys([key("b")], LIFETIME)
        await asyncio.sleep(0.4)
        assert (await offer(interface, "c")).claimant == first  # which has lost its only key
        assert (await offer(interface, "b")).claimant == kept
        assert admin.zscore("asgibus:affinity:pool", first) == 1
        assert admin.hlen("asgibus:assigned:{asgibus:affinity:pool}") == 2


async def test_there_is_a_bound_to_keys(
    layer: RedisChannelLayer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(assignments, "MOST_KEYS", 3)
    async with AsyncExitStack() as stack:
        interface = await stack.enter_async_context(layer.bus("interface", Recorder()))
        interface.announce_keys([POOL])
        await start(stack, layer)
        for name in "abcde":
            await offer(interface, name)
        assert layer.counts["affinity key forgotten"] == 2
    (line,) = [record.getMessage() for record in caplog.records if "--affinity" in record.getMessage()]
    assert "the pool pool has more than 3 keys" in line


@pytest.mark.parametrize("arrives", [True, False], ids=["reply lost", "command lost"])
@pytest.mark.parametrize("once", [True, False])
async def test_an_offer_in_flight_at_a_lost_connection_exists_once(
    arrives: bool, once: bool, redis_url: str, layer: RedisChannelLayer
) -> None:
    url = urlsplit(redis_url)
    with TcpProxy((str(url.hostname), int(url.port or 0))) as proxy:
        cut = RedisChannelLayer(proxy.url + url.path)
        async with AsyncExitStack() as stack:
            handler = Recorder()
            interface = await stack.enter_async_context(cut.bus("interface", handler))
            interface.announce_keys([POOL])
            worker = await start(stack, layer)
            await offer(interface, "a", (0,))
            proxy.cut_request(rb"payload 1", arrives=arrives)
            made = await offer(interface, "a", ("payload 1",), once=once)
            assert made.claimant == worker.bus.mailbox
            await until(lambda: cut.counts["offer looked for"])
            await interface.drain()
            assert await claim(worker) == [(0,), ("payload 1",)]
            assert proxy.requests_cut == 1
        await cut.close()


async def test_offers_by_key_are_encrypted(redis_url: str, admin: "redis.Redis[bytes]") -> None:
    layer = RedisChannelLayer(redis_url, symmetric_encryption_keys=["secret"])
    async with AsyncExitStack() as stack:
        interface = await stack.enter_async_context(layer.bus("interface", Recorder()))
        interface.announce_keys([POOL])
        worker = await start(stack, layer)
        made = await offer(interface, "a", ("plain",))
        ((_, fields),) = admin.xrange(f"asgibus:shared:{made.channel}")
        assert b"plain" not in fields[b"b"]
        assert await claim(worker) == [("plain",)]
        await offer(interface, "a", ("plain",))
        worker.bus.stop_claiming()
        await until(lambda: worker.refused == [("plain",)])
    await layer.close()


async def test_what_waits_for_one_worker_is_counted(layer: RedisChannelLayer) -> None:
    async with AsyncExitStack() as stack:
        interface = await stack.enter_async_context(layer.bus("interface", Recorder()))
        early = await start(stack, layer)
        assert early.bus.own_channel == interface.own_channel == ""
        interface.announce_keys([POOL])
        worker = await start(stack, layer)
        for number in range(3):
            await offer(interface, "a", (number,))
        assert (await worker.bus.shared_statistics(worker.bus.own_channel))["messages_pending"] == 3
        await claim(worker)
        assert (await worker.bus.shared_statistics(worker.bus.own_channel))["messages_pending"] == 0


async def test_the_keys_in_redis_end_by_themselves(layer: RedisChannelLayer, admin: "redis.Redis[bytes]") -> None:
    async with AsyncExitStack() as stack:
        interface = await stack.enter_async_context(layer.bus("interface", Recorder()))
        interface.announce_keys([POOL])
        worker = await start(stack, layer)
        await offer(interface, "a")
        await interface.drain()
        names = list(admin.keys("asgibus:*affinity*"))
        assert len(names) == 4
        assert all(admin.ttl(name) > 0 for name in names)
        assert worker.bus.own_channel


@pytest.mark.parametrize(
    "name", ["affinity:pool", "assigned:{asgibus:affinity:pool}", "expiring:{asgibus:affinity:pool}"]
)
async def test_a_key_of_another_type_is_replaced(
    name: str, layer: RedisChannelLayer, admin: "redis.Redis[bytes]"
) -> None:
    async with AsyncExitStack() as stack:
        interface = await stack.enter_async_context(layer.bus("interface", Recorder()))
        interface.announce_keys([POOL])
        worker = await start(stack, layer)
        await offer(interface, "a")
        admin.set(f"asgibus:{name}", "odd")
        refused = await offer(interface, "a", ("refused",))
        assert refused.claimant == ""  # so that it is offered again later
        await until(lambda: admin.type(f"asgibus:{name}") != b"string")
        await worker.bus.announce(POOL, "app", 0)
        assert (await offer(interface, "a")).claimant == worker.bus.mailbox
        assert layer.counts["keys refused"] == 1


async def test_announcements_of_another_type_are_replaced(
    layer: RedisChannelLayer, admin: "redis.Redis[bytes]"
) -> None:
    async with AsyncExitStack() as stack:
        interface = await stack.enter_async_context(layer.bus("interface", Recorder()))
        admin.set("asgibus:apps", "odd")
        interface.announce_keys([POOL])
        await until(lambda: admin.type("asgibus:apps") != b"string")
        interface.announce_keys([POOL])
        worker = await start(stack, layer)
        assert (await offer(interface, "a")).claimant == worker.bus.mailbox


async def test_an_entry_that_only_a_claimant_might_read_is_dropped(
    layer: RedisChannelLayer, admin: "redis.Redis[bytes]", caplog: pytest.LogCaptureFixture
) -> None:
    async with AsyncExitStack() as stack:
        interface = await stack.enter_async_context(layer.bus("interface", Recorder()))
        interface.announce_keys([POOL])
        worker = await start(stack, layer)
        stream = f"asgibus:shared:{worker.bus.own_channel}"
        for _ in range(30):
            admin.xadd(stream, {"b": FIRST_BYTE + b"\x09 of a later release"})
        await offer(interface, "a", ("refused",))
        await offer(interface, "a", ("good",))
        async with asyncio.timeout(2):  # a pause would last for longer, and nobody else could claim them
            refused, good = await worker.bus.claim(["shared"], 100)
            worker.bus.release(refused, "the worker cannot read it")
            worker.bus.done(good)
            assert (refused.entry, good.entry) == (("refused",), ("good",))
            await until(lambda: admin.xpending(stream, "workers")["pending"] == 0)
        assert worker.bus.unreadable is None
        assert layer.counts["unreadable entry"] == 31
    (line,) = [record.getMessage() for record in caplog.records if "only this process" in record.getMessage()]
    assert "version 9" in line


async def test_claimants_that_have_died_are_forgotten(layer: RedisChannelLayer, admin: "redis.Redis[bytes]") -> None:
    async with AsyncExitStack() as stack:
        interface = await stack.enter_async_context(layer.bus("interface", Recorder()))
        interface.announce_keys([POOL])
        worker = await start(stack, layer)
        await until(lambda: admin.zcard("asgibus:affinity:pool"))
        admin.zadd("asgibus:processes", {"recent!": 1 + admin.time()[0] * 1000 - 1000})
        admin.zadd("asgibus:affinity:pool", {f"{name}!": -1 for name in ("recent", "dead", "older")})
        admin.zrem("asgibus:processes", "grace")  # else they may be alive, and were not here yet
        assert (await offer(interface, "a")).claimant == worker.bus.mailbox
        assert {*admin.zrange("asgibus:affinity:pool", 0, -1)} == {b"recent!", worker.bus.mailbox.encode()}


async def test_offers_by_key_on_a_cluster(tmp_path: Path) -> None:
    with Cluster(redis_binary(), tmp_path) as cluster:
        layer = RedisChannelLayer([{"cluster_nodes": [("127.0.0.1", cluster.port(node)) for node in cluster.servers]}])
        async with AsyncExitStack() as stack:
            interface = await stack.enter_async_context(layer.bus("interface", Recorder()))
            interface.announce_keys([POOL])
            first, second = [await start(stack, layer) for _ in range(2)]
            for name in "abcd":
                assert (await offer(interface, name, (name,))).claimant
            assert {*await claim(first), *await claim(second)} == {("a",), ("b",), ("c",), ("d",)}
            await offer(interface, "a", ("late",))
            first.bus.stop_claiming()
            assert (await offer(interface, "a")).claimant == second.bus.mailbox
        await layer.close()
