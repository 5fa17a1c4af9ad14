"""Check groups of channels."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field

from asgibus.layers.channel_layer import ChannelLayer
from asgibus.testing.conformance.tools import (
    LayerFactory,
    another_layer,
    both_kinds,
    by_the_clock,
    expect,
    expect_equal,
    expect_silence,
    fresh_layer,
    receive,
    receive_all,
    within,
)

MEMBERS = 2000
AT_ONCE = 200  # joins under way at the same time: a store may bound them


async def check_every_member_gets_a_copy_once(make_layer: LayerFactory) -> None:
    """Check ordinary and process-local members, however often each has joined."""
    async with fresh_layer(make_layer) as layer:
        members = ["a", "b", *(await both_kinds(layer)), await layer.new_channel(), await layer.new_channel("other")]
        for member in [*members, "a", members[-1]]:
            await layer.group_add("group", member)
        await layer.group_send("group", {"list": [1]})
        received = [await receive(layer, member) for member in members]
        expect_equal(received, [{"list": [1]}] * len(members), "messages of the members")
        received[0]["list"].append(2)
        expect_equal(received[1:], [{"list": [1]}] * (len(members) - 1), "the copies, after one was altered")
        await layer.group_send("group", {"last": True})
        received = [await receive(layer, member) for member in members]
        expect_equal(received, [{"last": True}] * len(members), "next messages of the members")


async def check_only_members_get_a_message(make_layer: LayerFactory) -> None:
    """Check former members, members of another group, and a group without members."""
    async with fresh_layer(make_layer) as layer:
        channels = await both_kinds(layer)
        for member in channels:
            await layer.group_add("group", member)
            await layer.group_discard("group", member)
            await layer.group_discard("group", member)
        await layer.group_add("other", channels[1])
        await layer.group_send("group", {"n": 1})
        await layer.group_send("nobody", {"n": 1})
        for member in channels:
            await layer.send(member, {"n": 2})
            expect_equal(await receive(layer, member), {"n": 2}, f"first message of {member}")


async def check_only_full_members_miss_a_message(make_layer: LayerFactory) -> None:
    """Check that the loss is counted at the full channel, and that group_send does not raise."""
    async with fresh_layer(make_layer, capacity=1) as layer:
        full, free = await both_kinds(layer), ("free", await layer.new_channel())
        for member in (*full, *free):
            await layer.group_add("group", member)
        for member in full:
            await layer.send(member, {"n": 0})
        await layer.group_send("group", {"n": 1})
        for member in free:
            expect_equal(await receive(layer, member), {"n": 1}, f"message of {member}")
        for member in full:
            expect_equal(await receive(layer, member), {"n": 0}, f"message of {member}")
            await expect_silence(layer, member)
        expect_equal((await layer.channel_statistics(full[0]))["channel_full_count"], 1, "messages that it missed")


@by_the_clock
async def check_a_membership_ends(make_layer: LayerFactory, second: float) -> None:
    """Check that it ends after `group_expiry` seconds, unless the channel itself joins again."""
    async with fresh_layer(make_layer, group_expiry=second) as layer:
        for member in ("old", "renewed"):
            await layer.group_add("group", member)
        await asyncio.sleep(0.6 * second)  # the clock of the store cannot be set by a check
        for member in ("new", "renewed"):
            await layer.group_add("group", member)
        await asyncio.sleep(0.6 * second)  # likewise
        await layer.group_send("group", {"n": 1})
        for member in ("new", "renewed"):
            expect_equal(await receive(layer, member), {"n": 1}, f"message of {member}")
        await layer.send("old", {"n": 2})
        expect_equal(await receive(layer, "old"), {"n": 2}, "first message of a channel whose membership had ended")


async def check_a_group_has_thousands_of_members(make_layer: LayerFactory) -> None:
    """Check that each gets the message once."""
    async with fresh_layer(make_layer) as layer:
        members = [await layer.new_channel() for _ in range(MEMBERS)] + [f"member.{n}" for n in range(MEMBERS // 20)]
        for start in range(0, len(members), AT_ONCE):
            await asyncio.gather(*(layer.group_add("group", member) for member in members[start : start + AT_ONCE]))
        for number in range(2):
            await within(layer.group_send("group", {"n": number}), f"group_send to {len(members)}")
        received = [await receive_all(layer, member, 2) for member in members]
        wrong = [member for member, messages in zip(members, received, strict=True) if messages != [{"n": 0}, {"n": 1}]]
        expect(not wrong, f"{len(wrong)} of {len(members)} members received something else, such as {wrong[:1]}")
        for member in (members[0], members[-1]):
            await expect_silence(layer, member)


@dataclass
class _Broadcast:
    """The progress of a sender that sends numbers to a group."""

    begun: int = -1
    sent: int = -1


@dataclass
class _Member:
    channel: str
    due: set[int] = field(default_factory=set)
    allowed: set[int] = field(default_factory=set)


async def check_joins_and_leaves_race_with_sends(make_layer: LayerFactory) -> None:
    """Check that a member gets the messages between its join and its leave once, and no others."""
    async with fresh_layer(make_layer, capacity=10_000) as layer:
        await _race(layer, layer)


async def check_joins_and_leaves_race_with_sends_of_another_layer(make_layer: LayerFactory) -> None:
    """Check this when another layer object sends."""
    async with fresh_layer(make_layer, capacity=10_000) as layer, another_layer(make_layer, capacity=10_000) as sender:
        await _race(layer, sender)


async def _race(layer: ChannelLayer, sender: ChannelLayer) -> None:
    broadcast, dice = _Broadcast(), random.Random(11)
    members = [_Member(f"racer.{number}" if number % 2 else await layer.new_channel()) for number in range(8)]

    async def send() -> None:
        while True:
            broadcast.begun += 1
            await sender.group_send("race", {"n": broadcast.begun})
            broadcast.sent = broadcast.begun

    async def come_and_go(member: _Member) -> None:
        turn = 0
        while turn < 8 or not any(each.due for each in members):
            turn += 1
            first_allowed = broadcast.sent + 1
            await layer.group_add("race", member.channel)
            first_due = broadcast.begun + 1
            await asyncio.sleep(dice.uniform(0, 0.01) * turn / 4)  # longer and longer, for a machine that is slow
            last_due = broadcast.sent
            await layer.group_discard("race", member.channel)
            last_allowed = broadcast.begun
            member.due.update(range(first_due, last_due + 1))
            member.allowed.update(range(first_allowed, last_allowed + 1))
            await asyncio.sleep(dice.uniform(0, 0.005))

    sending = asyncio.create_task(send())
    try:
        await within(asyncio.gather(*map(come_and_go, members)), "joins and leaves")
    finally:
        sending.cancel()
        await asyncio.wait([sending])
    expect(sending.cancelled(), f"group_send failed: {sending}")
    for member in members:
        await layer.send(member.channel, {"n": -1})
        received = []
        while (number := (await receive(layer, member.channel))["n"]) >= 0:
            received.append(number)
        expect_equal(received, sorted(set(received)), f"messages of {member.channel}, in order and once")
        expect_equal(member.due - set(received), set(), f"messages that {member.channel} missed as a member")
        expect_equal(
            set(received) - member.allowed, set(), f"messages that {member.channel} received without being a member"
        )


CHECKS = (
    check_every_member_gets_a_copy_once,
    check_only_members_get_a_message,
    check_only_full_members_miss_a_message,
    check_a_membership_ends,
    check_a_group_has_thousands_of_members,
    check_joins_and_leaves_race_with_sends,
)
SHARED_CHECKS = (check_joins_and_leaves_race_with_sends_of_another_layer,)
