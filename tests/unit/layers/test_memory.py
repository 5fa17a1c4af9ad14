"""Ends of processes on the memory layer: without leases, a closed bus is declared dead at once."""

import asyncio
from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any

import pytest

from asgibus.layers import Claim, InMemoryChannelLayer
from asgibus.layers.contract import Frame
from asgibus.layers.frames import DEAD, FIRST_PROTOCOL_KIND
from asgibus.layers.memory import MemoryBus
from support.bus import Recorder, until

pytestmark = pytest.mark.anyio

KIND = FIRST_PROTOCOL_KIND


@pytest.fixture
def layer() -> InMemoryChannelLayer:
    return InMemoryChannelLayer()


def entries(claims: list[Claim]) -> list[Any]:
    return [claim.entry for claim in claims]


async def turns() -> None:
    """Let the event loop run all callbacks that are due, and those that they schedule."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_an_end_is_reported_after_all_posted_frames(layer: InMemoryChannelLayer) -> None:
    first, second, ended = Recorder(), Recorder(), Recorder()
    async with layer.bus("a", first) as a, layer.bus("b", second):
        async with layer.bus("c", ended) as c:
            mailbox = c.mailbox
            for number in range(3):
                c.post(a.mailbox, (KIND, number))
        await until(lambda: first.dead and second.dead)
        await turns()
        assert first.events == [(KIND, 0), (KIND, 1), (KIND, 2), (DEAD, mailbox, False)]
        assert second.events == [(DEAD, mailbox, False)]
        assert ended.events == []
        assert [sender for sender, _ in first.batches] == [mailbox]


async def test_a_post_to_an_unknown_mailbox_is_undelivered_and_then_a_death(
    layer: InMemoryChannelLayer,
) -> None:
    handler = Recorder()
    async with layer.bus("a", handler) as a:
        a.post("gone.0!", (KIND, 1))
        a.post("gone.0!", (KIND, 2))
        assert handler.events == [], "a handler is called from the event loop, not from within a call"
        await until(lambda: len(handler.events) >= 4)
        assert handler.lost == ["gone.0!", "gone.0!"]
        assert set(handler.dead) == {"gone.0!"}
        assert handler.events[0] == "undelivered"


async def test_unfinished_claims_are_handed_on(layer: InMemoryChannelLayer) -> None:
    claimant, other = Recorder(), Recorder()
    async with layer.bus("w", claimant) as a, layer.bus("w", other) as b, layer.bus("i", Recorder()) as interface:
        claiming = [asyncio.create_task(bus.claim([channel], 1)) for bus, channel in ((a, "x"), (b, "y"))]
        await turns()
        async with layer.bus("w", Recorder()) as c:
            for number in range(3):
                interface.offer("z", (number,))
            first, second, third = await c.claim(["z", "x"], 5)
            c.done(second)
        await turns()
        assert claimant.orphans == other.orphans == []  # no bus claims from that channel
        a.stop_claiming()
        b.stop_claiming()
        await asyncio.gather(*claiming)
        late = Recorder()
        async with layer.bus("w", late) as d:
            claiming = [asyncio.create_task(d.claim(["y", "z"], 5))]
            await until(lambda: len(late.orphans) == 2)
            assert late.orphans == [first, third]
            assert layer.counts["orphan"] == 2
            d.done(first)
            d.stop_claiming()
            assert await claiming[0] == []
        last = Recorder()
        async with layer.bus("w", last) as e:
            claiming = [asyncio.create_task(e.claim(["z"], 5))]
            await until(lambda: last.orphans)
            await turns()
            assert last.orphans == [third]
            e.done(third)
            e.stop_claiming()
            assert await claiming[0] == []


async def test_orphans_go_to_a_claimant_of_their_channel(layer: InMemoryChannelLayer) -> None:
    handlers = [Recorder() for _ in range(3)]
    async with (
        layer.bus("w", handlers[0]) as stopped,
        layer.bus("w", handlers[1]) as elsewhere,
        layer.bus("w", handlers[2]) as right,
    ):
        claiming = [
            asyncio.create_task(bus.claim([channel], 1))
            for bus, channel in ((stopped, "x"), (elsewhere, "y"), (right, "x"))
        ]
        await turns()
        stopped.stop_claiming()
        async with layer.bus("w", Recorder()) as victim:
            right.offer("x", ("for the one that waits",))
            assert entries(await claiming[2]) == [("for the one that waits",)]
            right.offer("x", (1,))
            assert entries(await victim.claim(["x"], 1)) == [(1,)]
        await until(lambda: handlers[2].orphans)
        await turns()
        assert [entries(handler.orphans) for handler in handlers] == [[], [], [(1,)]]
        elsewhere.stop_claiming()
        await asyncio.gather(*claiming)


async def test_a_live_process_declared_dead_continues(layer: InMemoryChannelLayer) -> None:
    one, living = Recorder(), Recorder()
    async with layer.bus("a", one) as a, layer.bus("b", living) as b:
        await b.join_group("group")
        a.offer("x", (1,))
        (claim,) = await b.claim(["x"], 1)
        claiming = asyncio.create_task(a.claim(["x"], 1))
        await turns()
        await layer.declare_dead(b.mailbox)
        await until(lambda: one.dead and living.interruptions and one.orphans)
        assert one.dead == [b.mailbox]
        assert one.orphans == [claim]
        assert (living.dead, living.interruptions) == ([], 1)
        a.post(b.mailbox, (KIND, 1))
        b.post(a.mailbox, (KIND, 2))
        await layer.group_send("group", {})
        await until(lambda: len(living.frames) == 2 and one.frames == [(KIND, 2)])
        a.stop_claiming()
        await claiming


async def test_any_mailbox_may_be_declared_dead(layer: InMemoryChannelLayer) -> None:
    handler = Recorder()
    async with layer.bus("a", handler):
        await layer.declare_dead("nobody.0!")
        await until(lambda: handler.dead == ["nobody.0!"])
        assert handler.interruptions == 0


def unexpected() -> None:
    raise AssertionError("the offer is not lost")


async def test_offer_again_does_nothing(layer: InMemoryChannelLayer) -> None:
    async with layer.bus("i", Recorder()) as interface, layer.bus("w", Recorder()) as worker:
        offers = [interface.offer("x", (number,)) for number in range(2)]
        assert len(await worker.claim(["x"], 1)) == 1
        for offer in offers:
            interface.offer_again(offer, unexpected)
        assert entries(await worker.claim(["x"], 5)) == [(1,)]
        interface.offer_again(offers[1], unexpected)
        assert interface.available
        claiming = asyncio.create_task(worker.claim(["x"], 5))
        await turns()
        worker.stop_claiming()
        assert await claiming == []


async def test_global_statistics_leave_out_local_channels(layer: InMemoryChannelLayer) -> None:
    await layer.send("a", {})
    await layer.receive("a")
    await layer.send(await layer.new_channel(), {})
    for statistics in (await layer.channel_statistics("a"), await layer.global_statistics()):
        assert (statistics["messages_count"], statistics["messages_pending"]) == (1, 0)


async def test_a_handler_runs_in_the_context_of_its_own_server(layer: InMemoryChannelLayer) -> None:
    whose = ContextVar("whose", default="nobody's")
    values: list[str] = []

    class Reader(Recorder):
        def batch(self, sender: str, frames: Sequence[Frame]) -> None:
            values.append(whose.get())
            super().batch(sender, frames)

    async with layer.bus("a", Recorder()) as a:
        whose.set("the reader's")
        async with layer.bus("b", Reader()) as b:
            whose.set("the sender's")
            a.post(b.mailbox, (KIND, 1))
            await layer.send(b.mailbox + "1", {})
            await until(lambda: len(values) == 2)
    assert set(values) == {"the reader's"}


async def test_a_removed_bus_is_declared_dead_and_reads_no_frame(layer: InMemoryChannelLayer) -> None:
    one, two = Recorder(), Recorder()
    async with layer.bus("a", one) as a:
        bus = MemoryBus(layer, "b.1!", two, asyncio.get_running_loop())
        async with layer.place(bus):
            await bus.join_group("group")
            layer.remove(bus)
            a.post(bus.mailbox, (KIND, 1))
            await layer.group_send("group", {})
            await until(lambda: one.lost == [bus.mailbox])
        await turns()
    assert two.frames == []
    assert one.dead == [bus.mailbox, bus.mailbox]  # at the removal, and for the undelivered frame


async def test_groups_without_members_are_forgotten() -> None:
    now = 0.0
    layer = InMemoryChannelLayer(group_expiry=10, clock=lambda: now)
    for number in range(100):
        await layer.group_add(f"visitor.{number}", "channel")
    now = 9.0
    await layer.group_add("visitor.0", "channel")
    now = 11.0
    await layer.group_add("visitor.100", "channel")
    assert sorted(layer._groups) == ["visitor.0", "visitor.100"]
    now = 30.0
    await layer.group_send("visitor.0", {})
    await layer.group_send("visitor.100", {})
    assert not layer._groups
