"""The servers' half of the contract: mailboxes, shared channels, and groups of mailboxes, on every layer."""

import asyncio
import random
from typing import Any

import pytest

from asgibus.layers import ChannelLayer
from asgibus.layers.contract import FIRST_PROTOCOL_KIND, GROUP_MESSAGE, MESSAGE, Bus
from asgibus.layers.redis import presence
from support.bus import MakeLayer, Recorder, until

pytestmark = pytest.mark.anyio

KIND = FIRST_PROTOCOL_KIND


async def entries(bus: Bus, *channels: str, limit: int = 100) -> list[Any]:
    """What can be claimed now, oldest first."""
    claims = await asyncio.wait_for(bus.claim(channels, limit), 10)
    for claim in claims:
        bus.done(claim)
    return [claim.entry for claim in claims]


async def rest(bus: Bus, *channels: str) -> list[Any]:
    """All that is left, claimed until the claimant is told to stop; it is of no use afterwards."""
    left: list[Any] = []
    claiming = asyncio.create_task(bus.claim(channels, 100))
    while True:
        await asyncio.wait([claiming], timeout=0.1)
        if not claiming.done():
            bus.stop_claiming()
        claims = await asyncio.wait_for(claiming, 10)
        if not claims:
            return left
        for claim in claims:
            bus.done(claim)
        left += [claim.entry for claim in claims]
        claiming = asyncio.create_task(bus.claim(channels, 100))


# Mailboxes.


async def test_frames_arrive_in_the_order_of_their_posting(layer: ChannelLayer) -> None:
    readers = [Recorder(), Recorder()]
    async with layer.bus("a", readers[0]) as a, layer.bus("b", readers[1]) as b, layer.bus("c", Recorder()) as c:
        for number in range(300):
            c.post(a.mailbox, (KIND, number, b"bytes", "str"), 100)
            c.post(b.mailbox, (KIND, -number, None, (1, (2,))))
            if number % 50 == 0:
                await asyncio.sleep(0)
        await until(lambda: all(len(reader.frames) == 300 for reader in readers))
        assert readers[0].frames == [(KIND, number, b"bytes", "str") for number in range(300)]
        assert readers[1].frames == [(KIND, -number, None, (1, (2,))) for number in range(300)]
        assert {sender for reader in readers for sender, _ in reader.batches} == {c.mailbox}
        assert len(readers[0].batches) < 20, "frames of one turn of the loop belong together"


async def test_no_batch_is_empty(layer: ChannelLayer) -> None:
    class Counting(Recorder):
        sizes: list[int] = []  # noqa: RUF012 - one is made

        def batch(self, sender: str, frames: Any) -> None:
            self.sizes.append(len(frames))

    reader = Counting()
    async with layer.bus("a", reader) as a:
        a.post(a.mailbox, (KIND, 1))
        await a.posted()
        await until(lambda: reader.sizes)
        assert reader.sizes == [1]


async def test_every_sender_s_frames_come_under_its_name(layer: ChannelLayer) -> None:
    reader = Recorder()
    async with layer.bus("a", reader) as a, layer.bus("b", Recorder()) as b, layer.bus("b", Recorder()) as c:
        for number in range(20):
            b.post(a.mailbox, (KIND, "b", number))
            c.post(a.mailbox, (KIND, "c", number))
            a.post(a.mailbox, (KIND, "a", number))
        await until(lambda: len(reader.frames) == 60)
        for bus, name in ((a, "a"), (b, "b"), (c, "c")):
            frames = [frame for sender, frames in reader.batches if sender == bus.mailbox for frame in frames]
            assert frames == [(KIND, name, number) for number in range(20)]


async def test_large_frames_arrive_too(layer: ChannelLayer) -> None:
    reader = Recorder()
    part = bytes(64 * 1024)
    async with layer.bus("a", reader) as a, layer.bus("b", Recorder()) as b:
        for number in range(64):
            b.post(a.mailbox, (KIND, number, part), len(part))
        await until(lambda: len(reader.frames) == 64)
        assert [frame[1] for frame in reader.frames] == list(range(64))
        assert all(frame[2] == part for frame in reader.frames)


async def test_who_posts_to_a_mailbox_that_is_gone_is_told(layer: ChannelLayer) -> None:
    sender, reader = Recorder(), Recorder()
    async with layer.bus("b", sender) as b:
        async with layer.bus("a", reader) as a:
            gone = a.mailbox
            b.post(gone, (KIND, 1))
            await until(lambda: reader.frames)
        b.post(gone, (KIND, 2))
        await until(lambda: sender.lost)
        assert sender.lost == [gone]
        assert sender.frames == []


async def test_anyone_can_send_to_a_place_in_a_mailbox(make_layer: MakeLayer, kind: str) -> None:
    layer, reader = make_layer(), Recorder()
    other = make_layer() if kind != "memory" else layer  # another process would have its own
    async with layer.bus("a", reader) as a:
        await other.send(a.mailbox + "17", {"type": "x", "list": [1], "bytes": b"b"})
        await other.group_add("group", a.mailbox + "18")
        await other.group_send("group", {"n": 1})
        await until(lambda: len(reader.frames) == 2)
        (first, second) = reader.frames
        assert first[:2] == (MESSAGE, "17")
        assert first[2]["bytes"] == b"b"
        assert second == (MESSAGE, "18", {"n": 1})
        assert {sender for sender, _ in reader.batches} == {""}


async def test_drain_waits_until_all_is_with_its_reader(layer: ChannelLayer) -> None:
    reader = Recorder()
    async with layer.bus("a", reader) as a, layer.bus("b", Recorder()) as b:
        for number in range(100):
            b.post(a.mailbox, (KIND, number))
        await asyncio.wait_for(b.drain(), 10)
        await asyncio.wait_for(b.drain(), 10)
        await until(lambda: len(reader.frames) == 100)


async def test_frames_posted_last_arrive(layer: ChannelLayer) -> None:
    reader = Recorder()
    async with layer.bus("a", reader) as a:
        async with layer.bus("b", Recorder()) as b:
            b.post(a.mailbox, (KIND, "last"))
            await b.drain()
        await until(lambda: reader.frames)


# Groups.


async def test_a_broadcast_reaches_each_mailbox_once(layer: ChannelLayer) -> None:
    readers = [Recorder() for _ in range(3)]
    async with (
        layer.bus("a", readers[0]) as a,
        layer.bus("b", readers[1]) as b,
        layer.bus("c", readers[2]) as c,
    ):
        await a.join_group("group")
        await a.join_group("group")
        await b.join_group("group")
        await layer.group_send("group", {"n": 1})
        await b.leave_group("group")
        await b.leave_group("group")
        await layer.group_send("group", {"n": 2})
        for bus in (a, b, c):
            a.post(bus.mailbox, (KIND, "last"))
        await until(lambda: all(reader.frames and reader.frames[-1] == (KIND, "last") for reader in readers))
        assert readers[0].frames[:-1] == [(GROUP_MESSAGE, "group", {"n": 1}), (GROUP_MESSAGE, "group", {"n": 2})]
        assert readers[1].frames[:-1] == [(GROUP_MESSAGE, "group", {"n": 1})]
        assert readers[2].frames[:-1] == []


@pytest.mark.parametrize("name", ["a\n", "", "a!b"])
async def test_bad_group_names_are_refused(layer: ChannelLayer, name: str) -> None:
    async with layer.bus("a", Recorder()) as a:
        with pytest.raises(TypeError):
            await a.join_group(name)
        with pytest.raises(TypeError):
            await a.leave_group(name)


async def test_a_server_s_membership_does_not_end_while_it_lives(
    make_layer: MakeLayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(presence, "BEAT_SECONDS", 0.1)
    layer, reader = make_layer(group_expiry=1), Recorder()
    async with layer.bus("a", reader) as a:
        await a.join_group("group")
        await asyncio.sleep(1.3)  # by the clock of the store, which a test cannot turn
        await layer.group_send("group", {"n": 1})
        await until(lambda: reader.frames)


# Shared channels.


async def test_the_statistics_tell_who_waits(layer: ChannelLayer) -> None:
    async with layer.bus("offer", Recorder()) as interface, layer.bus("w", Recorder()) as worker:
        nothing = await interface.shared_statistics("x")
        assert (nothing["messages_count"], nothing["messages_pending"], nothing["messages_max_age"]) == (0, 0, 0)
        interface.offer("x", (0,))
        (claim,) = await worker.claim(["x"], 1)
        assert (await interface.shared_statistics("x"))["messages_pending"] == 0
        for number in (1, 2):
            interface.offer("x", (number,))
        await interface.drain()
        await asyncio.sleep(0.02)  # by the clock of the store, which a test cannot turn
        waiting = await worker.shared_statistics("x")
        assert (waiting["messages_count"], waiting["messages_pending"]) == (3, 2)
        assert 0.01 < waiting["messages_max_age"] < 5
        worker.done(claim)
        await worker.drain()
        assert (await worker.shared_statistics("x"))["messages_pending"] == 2


async def test_an_entry_is_claimed_by_one(layer: ChannelLayer) -> None:
    count = 200
    claimed: list[list[Any]] = [[], [], []]

    async def claim(bus: Bus, mine: list[Any]) -> None:
        while claims := await bus.claim(["x", "y"], 7):
            assert len(claims) <= 7
            for claim in claims:
                mine.append((claim.channel, claim.entry))
                bus.done(claim)

    async with (
        layer.bus("offer", Recorder()) as interface,
        layer.bus("w", Recorder()) as a,
        layer.bus("w", Recorder()) as b,
        layer.bus("w", Recorder()) as c,
        asyncio.TaskGroup() as tasks,
    ):
        for bus, mine in zip((a, b, c), claimed, strict=True):
            tasks.create_task(claim(bus, mine))
        for number in range(count):
            interface.offer("xy"[number % 2], (number, b"scope", "text", None))
            if number % 20 == 0:
                await asyncio.sleep(0.001)
        await until(lambda: sum(map(len, claimed)) >= count)
        for bus in (a, b, c):
            bus.stop_claiming()
    everything = [entry for mine in claimed for entry in mine]
    assert sorted(everything) == sorted(("xy"[n % 2], (n, b"scope", "text", None)) for n in range(count))
    for mine in claimed:
        for channel in "xy":
            numbers = [entry[0] for name, entry in mine if name == channel]
            assert numbers == sorted(numbers), "oldest first"


async def test_what_was_offered_before_anyone_claims_waits(layer: ChannelLayer) -> None:
    async with layer.bus("offer", Recorder()) as interface:
        for number in range(5):
            interface.offer("x", (number,))
        await interface.drain()
        async with layer.bus("w", Recorder()) as worker:
            assert await entries(worker, "x", limit=3) == [(0,), (1,), (2,)]
            assert await entries(worker, "x", limit=3) == [(3,), (4,)]


async def test_no_more_is_claimed_than_there_is_room_for(layer: ChannelLayer) -> None:
    async with layer.bus("offer", Recorder()) as interface, layer.bus("w", Recorder()) as worker:
        for number in range(6):
            interface.offer("x", ("x", number))
            interface.offer("y", ("y", number))
        await interface.drain()
        claimed = []
        for _ in range(12):
            (entry,) = await entries(worker, "x", "y", limit=1)
            claimed.append(entry)
        assert sorted(claimed) == sorted((name, number) for name in "xy" for number in range(6))


async def test_a_withdrawn_offer_is_not_claimed(layer: ChannelLayer) -> None:
    async with layer.bus("offer", Recorder()) as interface, layer.bus("w", Recorder()) as worker:
        offers = [interface.offer("x", (number,)) for number in range(4)]
        interface.withdraw(offers[0])  # at once: the store may not even have it
        await interface.drain()
        interface.withdraw(offers[2])
        interface.withdraw(offers[2])
        await interface.drain()
        assert await rest(worker, "x") == [(1,), (3,)]


async def test_what_is_claimed_cannot_be_withdrawn(layer: ChannelLayer) -> None:
    async with layer.bus("offer", Recorder()) as interface, layer.bus("w", Recorder()) as worker:
        offer = interface.offer("x", (1,))
        (claim,) = await worker.claim(["x"], 10)
        interface.withdraw(offer)
        await interface.drain()
        worker.done(claim)
        assert claim.entry == (1,)
        interface.offer("x", (2,))
        assert await entries(worker, "x") == [(2,)]


async def test_stop_claiming_ends_a_waiting_claim_at_once(layer: ChannelLayer) -> None:
    async with layer.bus("w", Recorder()) as worker:
        claiming = asyncio.create_task(worker.claim(["x"], 10))
        done, _ = await asyncio.wait([claiming], timeout=0.05)
        assert not done
        worker.stop_claiming()
        assert await asyncio.wait_for(claiming, 2) == []
        assert await asyncio.wait_for(worker.claim(["x"], 10), 2) == []


async def test_stop_claiming_before_the_first_claim(layer: ChannelLayer) -> None:
    async with layer.bus("w", Recorder()) as worker:
        worker.stop_claiming()
        assert await asyncio.wait_for(worker.claim(["x"], 10), 2) == []
        async with layer.bus("w", Recorder()) as other:
            claiming = asyncio.create_task(other.claim(["x"], 10))
            await asyncio.sleep(0)
            other.stop_claiming()
            assert await asyncio.wait_for(claiming, 2) == []


async def test_who_has_stopped_claims_nothing_more(layer: ChannelLayer) -> None:
    async with layer.bus("w", Recorder()) as stopped, layer.bus("w", Recorder()) as other:
        stopped.stop_claiming()
        stopped.offer("x", (1,))
        await stopped.drain()
        assert await asyncio.wait_for(stopped.claim(["x"], 10), 2) == []
        assert await entries(other, "x") == [(1,)]


async def test_a_claimant_that_stops_takes_nothing_with_it(layer: ChannelLayer) -> None:
    """Whenever it is told to stop: what was offered is claimed by it or by another one, once."""
    dice = random.Random(3)
    async with layer.bus("offer", Recorder()) as interface:
        for turn in range(25):
            channel = f"x{turn}"
            claimed: list[Any] = []
            async with layer.bus("w", Recorder()) as stopping:

                async def claim(bus: Bus, channel: str, claimed: list[Any]) -> None:
                    while claims := await bus.claim([channel], 4):
                        for each in claims:
                            claimed.append(each.entry)
                            bus.done(each)

                claiming = asyncio.create_task(claim(stopping, channel, claimed))
                await asyncio.sleep(dice.uniform(0, 0.002))
                for number in range(8):
                    interface.offer(channel, (number,))
                await asyncio.sleep(dice.choice([0, 0, dice.uniform(0, 0.002)]))
                stopping.stop_claiming()
                await asyncio.wait_for(claiming, 3)
            await interface.drain()
            if len(claimed) < 8:
                async with layer.bus("w", Recorder()) as other:
                    while len(claimed) < 8:
                        claimed += await entries(other, channel)
            assert sorted(claimed) == [(number,) for number in range(8)]
