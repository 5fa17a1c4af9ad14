"""Offers by key in Redis: one key has one claimant, and no offer is lost or repeated when that one ends."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis

from asgibus.layers import Bus, Offer, RedisChannelLayer
from asgibus.layers.offers import AffinityKey
from asgibus.layers.redis import assignments
from support.bus import Recorder, until
from support.tcp_proxy import TcpProxy

pytestmark = pytest.mark.anyio

POOL = "pool"
LIFETIME = 60.0


class Worker(Recorder):
    """Claims by key, and notes what it could not claim."""

    bus: Bus

    def __init__(self) -> None:
        super().__init__()
        self.refused: list[Any] = []

    def declined(self, entry: Any) -> None:
        self.refused.append(entry)


@pytest.fixture
async def layer(redis_url: str) -> AsyncIterator[RedisChannelLayer]:
    layer = RedisChannelLayer(redis_url)
    yield layer
    await layer.close()


def key(name: str) -> AffinityKey:
    return AffinityKey(POOL, name.encode())


async def start(stack: AsyncExitStack, layer: RedisChannelLayer) -> Worker:
    """Start a worker, which claims by key if offers by key were announced."""
    worker = Worker()
    worker.bus = await stack.enter_async_context(layer.bus("worker", worker))
    await worker.bus.announce(POOL, "app", 0)
    return worker


async def offer(interface: Bus, name: str, entry: Any = (1,), **options: Any) -> Offer:
    """Offer an entry, and wait until its claimant is known."""
    assigned: asyncio.Future[Offer] = asyncio.get_running_loop().create_future()
    made = interface.offer_by_key(key(name), options.pop("lifetime", LIFETIME), entry, assigned.set_result, **options)
    assert await assigned is made
    return made


async def claim(worker: Worker) -> list[Any]:
    return [claim.entry for claim in await worker.bus.claim(["shared"], 10, wait=False)]


async def test_one_key_has_one_claimant(layer: RedisChannelLayer) -> None:
    async with AsyncExitStack() as stack:
        interface = await stack.enter_async_context(layer.bus("interface", Recorder()))
        await interface.announce_keys([POOL])
        workers = {worker.bus.mailbox: worker for worker in [await start(stack, layer) for _ in range(3)]}
        found = {name: (await offer(interface, name, (name,))).claimant for name in "abcdef"}
        assert Counter(found.values()) == dict.fromkeys(workers, 2)
        assert {name: (await offer(interface, name, (name,))).claimant for name in "abcdef"} == found
        for mailbox, worker in workers.items():
            names = [name for name in "abcdef" if found[name] == mailbox]
            assert await claim(worker) == [(name,) for name in names * 2]


async def test_who_announces_before_the_offers_claims_them_soon(layer: RedisChannelLayer) -> None:
    async with AsyncExitStack() as stack:
        interface = await stack.enter_async_context(layer.bus("interface", Recorder()))
        worker = await start(stack, layer)
        claiming = asyncio.ensure_future(worker.bus.claim(["shared"], 10))
        await asyncio.sleep(0.1)
        assert (await offer(interface, "a")).claimant == ""
        (found,) = await interface.announce_keys([POOL])
        assert (found.mailbox, found.pool, found.sessions, found.knows_keys) == (worker.bus.mailbox, POOL, 0, True)
        await worker.bus.announce(POOL, "app", 0)
        assert (await offer(interface, "a", ("now",))).claimant == worker.bus.mailbox
        async with asyncio.timeout(1):  # the blocked read would last for two seconds
            assert [each.entry for each in await claiming] == [("now",)]


async def test_a_worker_of_an_earlier_release_gets_no_offers_by_key(
    layer: RedisChannelLayer, admin: "redis.Redis[bytes]"
) -> None:
    async with layer.bus("interface", Recorder()) as interface, layer.bus("worker", Recorder()) as worker:
        await interface.announce_keys([POOL])
        entry = layer._entries.pack("asgibus:apps", (POOL, "app", 3))
        admin.hset("asgibus:apps", worker.mailbox, entry)
        (found,) = await interface.announce_keys([POOL])
        assert (found.sessions, found.knows_keys) == (3, False)
        assert (await offer(interface, "a")).claimant == ""


async def test_a_worker_that_stops_declines_what_it_has_not_claimed(layer: RedisChannelLayer) -> None:
    async with AsyncExitStack() as stack:
        interface = await stack.enter_async_context(layer.bus("interface", Recorder()))
        await interface.announce_keys([POOL])
        first, second = [await start(stack, layer) for _ in range(2)]
        claimant = (await offer(interface, "a", ("claimed",))).claimant
        stops, stays = (first, second) if claimant == first.bus.mailbox else (second, first)
        assert await claim(stops) == [("claimed",)]
        for number in range(3):
            await offer(interface, "a", (number,))
        stops.bus.stop_claiming()
        await until(lambda: stops.refused)
        assert stops.refused == [(0,), (1,), (2,)]
        for number in range(3):
            assert (await offer(interface, "a", (number,))).claimant == stays.bus.mailbox
        assert await claim(stays) == [(0,), (1,), (2,)]


async def test_what_a_dead_worker_has_not_claimed_is_taken_back(layer: RedisChannelLayer) -> None:
    async with AsyncExitStack() as stack:
        interface = await stack.enter_async_context(layer.bus("interface", Recorder()))
        await interface.announce_keys([POOL])
        workers = {worker.bus.mailbox: worker for worker in [await start(stack, layer) for _ in range(3)]}
        claimed = await offer(interface, "a", ("claimed",))
        dead = workers.pop(claimed.claimant)
        assert await claim(dead) == [("claimed",)]
        waiting = await offer(interface, "a", ("waiting",), once=True)
        await layer.declare_dead(dead.bus.mailbox)
        results: dict[str, bool] = {}
        interface.take_back(claimed, lambda unclaimed: results.update(claimed=unclaimed))
        interface.take_back(waiting, lambda unclaimed: results.update(waiting=unclaimed))
        await until(lambda: len(results) == 2)
        assert results == {"claimed": False, "waiting": True}


async def test_keys_expire(layer: RedisChannelLayer, admin: "redis.Redis[bytes]") -> None:
    async with AsyncExitStack() as stack:
        interface = await stack.enter_async_context(layer.bus("interface", Recorder()))
        await interface.announce_keys([POOL])
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


async def test_there_is_a_bound_to_keys(layer: RedisChannelLayer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assignments, "MOST_KEYS", 3)
    async with AsyncExitStack() as stack:
        interface = await stack.enter_async_context(layer.bus("interface", Recorder()))
        await interface.announce_keys([POOL])
        await start(stack, layer)
        for name in "abcde":
            await offer(interface, name)
        assert layer.counts["affinity key forgotten"] == 2


async def test_a_learned_key_is_assigned_to_its_worker(layer: RedisChannelLayer) -> None:
    async with AsyncExitStack() as stack:
        interface = await stack.enter_async_context(layer.bus("interface", Recorder()))
        await interface.announce_keys([POOL])
        workers = [await start(stack, layer) for _ in range(3)]
        for number in range(6):
            mailbox = workers[number % 2].bus.mailbox
            interface.assign(key(f"{number}"), LIFETIME, mailbox)
            assert (await offer(interface, f"{number}")).claimant == mailbox
        interface.assign(key("0"), LIFETIME, workers[2].bus.mailbox)
        assert (await offer(interface, "0")).claimant == workers[0].bus.mailbox


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
            await interface.announce_keys([POOL])
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
        await interface.announce_keys([POOL])
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
        await interface.announce_keys([POOL])
        worker = await start(stack, layer)
        for number in range(3):
            await offer(interface, "a", (number,))
        assert (await worker.bus.shared_statistics(worker.bus.own_channel))["messages_pending"] == 3
        await claim(worker)
        assert (await worker.bus.shared_statistics(worker.bus.own_channel))["messages_pending"] == 0


async def test_the_keys_in_redis_end_by_themselves(layer: RedisChannelLayer, admin: "redis.Redis[bytes]") -> None:
    async with AsyncExitStack() as stack:
        interface = await stack.enter_async_context(layer.bus("interface", Recorder()))
        await interface.announce_keys([POOL])
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
        await interface.announce_keys([POOL])
        worker = await start(stack, layer)
        await offer(interface, "a")
        admin.set(f"asgibus:{name}", "odd")
        interface.offer_by_key(key("a"), LIFETIME, ("lost",), lambda made: None)
        await until(lambda: admin.type(f"asgibus:{name}") != b"string")
        await worker.bus.announce(POOL, "app", 0)
        assert (await offer(interface, "a")).claimant == worker.bus.mailbox
        assert layer.counts["keys refused"] == 1
