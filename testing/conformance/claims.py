"""Check shared channels, whose entries are offered and claimed."""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from asgibus.layers.contract import Bus
from asgibus.testing.conformance.recorder import Recorder
from asgibus.testing.conformance.tools import (
    LayerFactory,
    expect,
    expect_equal,
    fresh_layer,
    until,
    within,
)


def _channel(name: str) -> str:
    """Return the name of a new shared channel: `flush` does not empty shared channels."""
    return f"{name}.{secrets.token_hex(4)}"


@asynccontextmanager
async def _two_processes(make_layer: LayerFactory) -> AsyncIterator[tuple[Bus, Bus]]:
    """Provide a process that offers, and one that claims."""
    async with (
        fresh_layer(make_layer) as layer,
        layer.bus("offer", Recorder()) as interface,
        layer.bus("w", Recorder()) as worker,
    ):
        yield interface, worker


async def _entries(bus: Bus, *channels: str, limit: int = 100) -> list[Any]:
    """Return the entries that can be claimed now, oldest first."""
    claims = await within(bus.claim(channels, limit), f"something to claim on {', '.join(channels)}")
    for claim in claims:
        bus.done(claim)
    return [claim.entry for claim in claims]


async def _claim_all(bus: Bus, channels: list[str], limit: int, claimed: list[Any]) -> None:
    """Claim until the claimant is stopped."""
    while claims := await bus.claim(channels, limit):
        expect(len(claims) <= limit, f"{len(claims)} were claimed where the limit is {limit}")
        for claim in claims:
            claimed.append((claim.channel, claim.entry))
            bus.done(claim)


async def check_each_entry_is_claimed_once(make_layer: LayerFactory) -> None:
    """Check that each entry is claimed once, and the oldest of a channel first."""
    count, channels = 200, [_channel("x"), _channel("y")]
    claimed: list[list[Any]] = [[], [], []]
    async with (
        fresh_layer(make_layer) as layer,
        layer.bus("offer", Recorder()) as interface,
        layer.bus("w", Recorder()) as a,
        layer.bus("w", Recorder()) as b,
        layer.bus("w", Recorder()) as c,
        asyncio.TaskGroup() as tasks,
    ):
        for bus, mine in zip((a, b, c), claimed, strict=True):
            tasks.create_task(_claim_all(bus, channels, 7, mine))
        for number in range(count):
            interface.offer(channels[number % 2], (number, b"scope", "text", None))
            if number % 20 == 0:
                await asyncio.sleep(0.001)
        await until(lambda: sum(map(len, claimed)) >= count, what=f"that {count} entries were claimed")
        for bus in (a, b, c):
            bus.stop_claiming()
    entries = sorted(entry for mine in claimed for entry in mine)
    expected = sorted((channels[number % 2], (number, b"scope", "text", None)) for number in range(count))
    expect_equal(entries, expected, "claimed entries")
    for mine in claimed:
        for channel in channels:
            numbers = [entry[0] for name, entry in mine if name == channel]
            expect_equal(numbers, sorted(numbers), "entries that one claimant got from a channel, oldest first")


async def check_offers_wait_for_a_claimant(make_layer: LayerFactory) -> None:
    """Check that entries wait for a claimant, and that a claim returns at most its limit."""
    channel = _channel("x")
    async with fresh_layer(make_layer) as layer, layer.bus("offer", Recorder()) as interface:
        for number in range(5):
            interface.offer(channel, (number,))
        await within(interface.drain(), "drain")
        async with layer.bus("w", Recorder()) as worker:
            expect_equal(await _entries(worker, channel, limit=3), [(0,), (1,), (2,)], "first claim")
            expect_equal(await _entries(worker, channel, limit=3), [(3,), (4,)], "next claim")


async def check_a_claim_returns_at_most_its_limit(make_layer: LayerFactory) -> None:
    """Check that the limit holds for several channels together."""
    x, y = _channel("x"), _channel("y")
    async with _two_processes(make_layer) as (interface, worker):
        for number in range(6):
            interface.offer(x, ("x", number))
            interface.offer(y, ("y", number))
        await within(interface.drain(), "drain")
        claimed = []
        for _ in range(12):
            entries = await _entries(worker, x, y, limit=1)
            expect_equal(len(entries), 1, "entries of one claim")
            claimed += entries
        expect_equal(sorted(claimed), sorted((name, number) for name in "xy" for number in range(6)), "claimed entries")


async def check_a_withdrawn_offer_is_not_claimed(make_layer: LayerFactory) -> None:
    """Check this for offers that have reached the store and for others, withdrawn once or twice."""
    channel = _channel("x")
    async with _two_processes(make_layer) as (interface, worker):
        offers = [interface.offer(channel, (number,)) for number in range(4)]
        interface.withdraw(offers[0])
        await within(interface.drain(), "drain")
        interface.withdraw(offers[2])
        interface.withdraw(offers[2])
        await within(interface.drain(), "drain")
        interface.offer(channel, ("last",))
        entries: list[Any] = []
        while ("last",) not in entries:
            entries += await _entries(worker, channel)
        expect_equal(entries, [(1,), (3,), ("last",)], "claimed entries of five, two of them withdrawn")


async def check_a_claimed_offer_cannot_be_withdrawn(make_layer: LayerFactory) -> None:
    """Check that withdrawing a claimed offer does nothing."""
    channel = _channel("x")
    async with _two_processes(make_layer) as (interface, worker):
        offer = interface.offer(channel, (1,))
        (claim,) = await within(worker.claim([channel], 10), "claim")
        interface.withdraw(offer)
        await within(interface.drain(), "drain")
        worker.done(claim)
        expect_equal(claim.entry, (1,), "claimed entries")
        interface.offer(channel, (2,))
        expect_equal(await _entries(worker, channel), [(2,)], "next claim")


async def check_a_claim_that_does_not_wait_returns_at_once(make_layer: LayerFactory) -> None:
    """Check that it returns nothing from an empty channel, and what is there from another one."""
    empty, channel = _channel("x"), _channel("y")
    async with _two_processes(make_layer) as (interface, worker):
        interface.offer(channel, (1,))
        await within(interface.drain(), "drain")
        expect_equal(await within(worker.claim([empty], 10, wait=False), "claim", 2), [], "claimed entries")
        (claim,) = await within(worker.claim([empty, channel], 10, wait=False), "claim", 2)
        worker.done(claim)
        expect_equal(claim.entry, (1,), "claimed entries")
        expect_equal(await within(worker.claim([channel], 10, wait=False), "claim", 2), [], "claimed entries")


async def check_stop_claiming_ends_a_waiting_claim_at_once(make_layer: LayerFactory) -> None:
    """Check that the waiting claim returns nothing, and so does every later one."""
    channel = _channel("x")
    async with fresh_layer(make_layer) as layer, layer.bus("w", Recorder()) as worker:
        claiming = asyncio.create_task(worker.claim([channel], 10))
        done, _ = await asyncio.wait([claiming], timeout=0.05)
        expect(not done, "claim from an empty channel did not wait")
        worker.stop_claiming()
        expect_equal(await within(claiming, "claim, stopped", 2), [], "claimed entries")
        expect_equal(await within(worker.claim([channel], 10), "claim, stopped", 2), [], "next claim")


async def check_stop_claiming_before_the_first_claim(make_layer: LayerFactory) -> None:
    """Check this before a claim, and while one has just begun."""
    channel = _channel("x")
    async with fresh_layer(make_layer) as layer, layer.bus("w", Recorder()) as worker:
        worker.stop_claiming()
        expect_equal(await within(worker.claim([channel], 10), "claim, stopped", 2), [], "claimed entries")
        async with layer.bus("w", Recorder()) as other:
            claiming = asyncio.create_task(other.claim([channel], 10))
            await asyncio.sleep(0)
            other.stop_claiming()
            expect_equal(await within(claiming, "claim, stopped", 2), [], "claimed entries")


async def check_a_stopped_claimant_claims_nothing(make_layer: LayerFactory) -> None:
    """Check that entries go to other claimants then."""
    channel = _channel("x")
    async with (
        fresh_layer(make_layer) as layer,
        layer.bus("w", Recorder()) as stopped,
        layer.bus("w", Recorder()) as other,
    ):
        stopped.stop_claiming()
        stopped.offer(channel, (1,))
        await within(stopped.drain(), "drain")
        expect_equal(await within(stopped.claim([channel], 10), "claim, stopped", 2), [], "claimed entries")
        expect_equal(await _entries(other, channel), [(1,)], "entries that another claimant got")


async def check_stopping_a_claimant_loses_no_entry(make_layer: LayerFactory) -> None:
    """Check that each entry is claimed once, whenever a claimant is stopped."""
    dice = random.Random(3)
    async with fresh_layer(make_layer) as layer, layer.bus("offer", Recorder()) as interface:
        for _ in range(25):
            channel = _channel("x")
            claimed: list[Any] = []
            async with layer.bus("w", Recorder()) as stopping:
                claiming = asyncio.create_task(_claim_all(stopping, [channel], 4, claimed))
                await asyncio.sleep(dice.uniform(0, 0.002))
                for number in range(8):
                    interface.offer(channel, (number,))
                await asyncio.sleep(dice.choice([0, 0, dice.uniform(0, 0.002)]))
                stopping.stop_claiming()
                await within(claiming, "claim, stopped", 3)
            await within(interface.drain(), "drain")
            entries = [entry for _, entry in claimed]
            if len(entries) < 8:
                async with layer.bus("w", Recorder()) as other:
                    while len(entries) < 8:
                        entries += await _entries(other, channel)
            expect_equal(sorted(entries), [(number,) for number in range(8)], "entries that either claimant got")


async def check_statistics_count_unclaimed_offers(make_layer: LayerFactory) -> None:
    """Check that offers count as messages, and unclaimed ones as pending."""
    channel = _channel("waiting")
    async with _two_processes(make_layer) as (interface, worker):
        nothing = await interface.shared_statistics(channel)
        expect_equal((nothing["messages_count"], nothing["messages_pending"]), (0, 0), "an unused channel")
        interface.offer(channel, (0,))
        (claim,) = await within(worker.claim([channel], 1), "something to claim")
        expect_equal((await interface.shared_statistics(channel))["messages_pending"], 0, "unclaimed ones")
        for number in (1, 2):
            interface.offer(channel, (number,))
        await interface.drain()
        await asyncio.sleep(0.02)  # the clock of the store cannot be set by a check
        waiting = await worker.shared_statistics(channel)
        expect_equal((waiting["messages_count"], waiting["messages_pending"]), (3, 2), "offers and unclaimed ones")
        expect(0.01 < waiting["messages_max_age"] < 10, f"the oldest has waited {waiting['messages_max_age']} s")
        worker.done(claim)
        await worker.drain()
        expect_equal((await worker.shared_statistics(channel))["messages_pending"], 2, "unclaimed ones")


CHECKS = (
    check_statistics_count_unclaimed_offers,
    check_each_entry_is_claimed_once,
    check_offers_wait_for_a_claimant,
    check_a_claim_returns_at_most_its_limit,
    check_a_withdrawn_offer_is_not_claimed,
    check_a_claimed_offer_cannot_be_withdrawn,
    check_a_claim_that_does_not_wait_returns_at_once,
    check_stop_claiming_ends_a_waiting_claim_at_once,
    check_stop_claiming_before_the_first_claim,
    check_a_stopped_claimant_claims_nothing,
    check_stopping_a_claimant_loses_no_entry,
)
