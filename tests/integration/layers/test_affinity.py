"""Offers by key, on every layer: one key has one claimant, also when that one dies or stops."""

import asyncio
from collections import Counter
from contextlib import AsyncExitStack
from typing import Any

import pytest

from asgibus.layers import Bus, ChannelLayer, Offer
from asgibus.layers.offers import AffinityKey
from support.bus import Recorder, until

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


def key(name: str) -> AffinityKey:
    return AffinityKey(POOL, name.encode())


async def start(stack: AsyncExitStack, layer: ChannelLayer) -> Worker:
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


async def test_one_key_has_one_claimant(layer: ChannelLayer) -> None:
    async with AsyncExitStack() as stack:
        interface = await stack.enter_async_context(layer.bus("interface", Recorder()))
        interface.announce_keys([POOL])
        workers = {worker.bus.mailbox: worker for worker in [await start(stack, layer) for _ in range(3)]}
        found = {name: (await offer(interface, name, (name,))).claimant for name in "abcdef"}
        assert Counter(found.values()) == dict.fromkeys(workers, 2)
        assert {name: (await offer(interface, name, (name,))).claimant for name in "abcdef"} == found
        for mailbox, worker in workers.items():
            names = [name for name in "abcdef" if found[name] == mailbox]
            assert await claim(worker) == [(name,) for name in names * 2]


async def test_a_worker_that_stops_declines_what_it_has_not_claimed(layer: ChannelLayer) -> None:
    async with AsyncExitStack() as stack:
        interface = await stack.enter_async_context(layer.bus("interface", Recorder()))
        interface.announce_keys([POOL])
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


async def test_what_a_dead_worker_has_not_claimed_is_taken_back(layer: ChannelLayer) -> None:
    async with AsyncExitStack() as stack:
        interface = await stack.enter_async_context(layer.bus("interface", Recorder()))
        interface.announce_keys([POOL])
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


async def test_a_learned_key_is_assigned_to_its_worker(layer: ChannelLayer) -> None:
    async with AsyncExitStack() as stack:
        interface = await stack.enter_async_context(layer.bus("interface", Recorder()))
        interface.announce_keys([POOL])
        workers = [await start(stack, layer) for _ in range(3)]
        for number in range(6):
            mailbox = workers[number % 2].bus.mailbox
            interface.assign(key(f"{number}"), LIFETIME, mailbox)
            assert (await offer(interface, f"{number}")).claimant == mailbox
        interface.assign(key("0"), LIFETIME, workers[2].bus.mailbox)
        assert (await offer(interface, "0")).claimant == workers[0].bus.mailbox


async def test_a_key_expires_unless_it_is_renewed(layer: ChannelLayer) -> None:
    async with AsyncExitStack() as stack:
        interface = await stack.enter_async_context(layer.bus("interface", Recorder()))
        interface.announce_keys([POOL])
        workers = [await start(stack, layer) for _ in range(2)]
        first = (await offer(interface, "a", lifetime=0.3)).claimant
        kept = (await offer(interface, "b", lifetime=0.3)).claimant
        assert {first, kept} == {worker.bus.mailbox for worker in workers}
        interface.renew_keys([key("b")], LIFETIME)
        await asyncio.sleep(0.4)  # by the clock of the store, which a test cannot set
        assert (await offer(interface, "a", known=True)).claimant == ""
        assert (await offer(interface, "b", known=True)).claimant == kept


async def test_a_key_that_must_be_known_is_not_assigned(layer: ChannelLayer) -> None:
    async with AsyncExitStack() as stack:
        interface = await stack.enter_async_context(layer.bus("interface", Recorder()))
        interface.announce_keys([POOL])
        first, second = [await start(stack, layer) for _ in range(2)]
        assert (await offer(interface, "a", known=True)).claimant == ""
        interface.assign(key("a"), LIFETIME, second.bus.mailbox)
        assert (await offer(interface, "a", ("known",), known=True)).claimant == second.bus.mailbox
        assert await claim(second) == [("known",)]
        second.bus.stop_claiming()
        assert (await offer(interface, "a", known=True)).claimant == first.bus.mailbox, "its worker was known"


async def test_keys_belong_to_a_pool(layer: ChannelLayer) -> None:
    async with AsyncExitStack() as stack:
        interface = await stack.enter_async_context(layer.bus("interface", Recorder()))
        interface.announce_keys([POOL, "other"])
        worker = await start(stack, layer)
        elsewhere: asyncio.Future[Offer] = asyncio.get_running_loop().create_future()
        interface.offer_by_key(AffinityKey("other", b"a"), LIFETIME, (1,), elsewhere.set_result)
        assert (await elsewhere).claimant == ""
        assert (await offer(interface, "a")).claimant == worker.bus.mailbox


async def test_without_a_claimant_nothing_is_offered(layer: ChannelLayer) -> None:
    async with AsyncExitStack() as stack:
        interface = await stack.enter_async_context(layer.bus("interface", Recorder()))
        interface.announce_keys([POOL])
        assert (await offer(interface, "a", ("lost",))).claimant == ""
        worker = await start(stack, layer)
        assert (await offer(interface, "a", ("found",))).claimant == worker.bus.mailbox
        assert await claim(worker) == [("found",)]
