"""Check the capacity of channels."""

from __future__ import annotations

import asyncio
import re

from asgibus.layers.channel_layer import ChannelLayer
from asgibus.layers.errors import ChannelFull
from asgibus.testing.conformance.tools import (
    LayerFactory,
    another_layer,
    both_kinds,
    count_dropped,
    expect,
    expect_equal,
    expect_silence,
    fresh_layer,
    receive,
    receive_all,
    refused,
    send_when_there_is_room,
    within,
)


async def _sent(layers: list[ChannelLayer], channel: str, numbers: range) -> list[int]:
    """Send all numbers at once, from these layers in turn. Return the accepted numbers."""

    async def send(number: int) -> None:
        await layers[number % len(layers)].send(channel, {"n": number})

    sending = asyncio.gather(*(send(number) for number in numbers), return_exceptions=True)
    outcomes = await within(sending, f"{len(numbers)} sends to {channel}")
    others = [outcome for outcome in outcomes if outcome is not None and not isinstance(outcome, ChannelFull)]
    expect(not others, f"sends to {channel} raised something else than ChannelFull: {others[:1]}")
    return [number for number, outcome in zip(numbers, outcomes, strict=True) if outcome is None]


async def check_a_full_channel_affects_no_other(make_layer: LayerFactory) -> None:
    """Check that ChannelFull names channel and capacity, and that no message is dropped for a new one."""
    async with fresh_layer(make_layer, capacity=2) as layer:
        for full, other in zip(await both_kinds(layer), ("other", await layer.new_channel()), strict=True):
            await layer.send(full, {"n": 1})
            await layer.send(full, {"n": 2})
            for _ in range(2):
                error = await refused(layer, full, {"n": 3})
            expect(isinstance(error, layer.ChannelFull), "layer.ChannelFull is another error")
            expect_equal((error.channel, error.capacity), (full, 2), "channel and capacity of the error")
            expect(f"{full!r} is at its capacity of 2" in str(error), f"the error does not say what is full: {error}")
            await layer.send(other, {"n": 5})
            expect_equal(await receive(layer, other), {"n": 5}, f"message of {other}")
            expect_equal(await receive(layer, full), {"n": 1}, f"first message of {full}")
            await send_when_there_is_room(layer, full, {"n": 4})
            expect_equal(await receive_all(layer, full, 2), [{"n": 2}, {"n": 4}], f"the others of {full}")
            await expect_silence(layer, full)


async def check_capacity_is_exact_under_many_senders(make_layer: LayerFactory) -> None:
    """Check that as many of many concurrent sends succeed as there is room for, and the others raise ChannelFull."""
    async with fresh_layer(make_layer, capacity=10) as layer:
        sent = await _sent([layer], "a", range(50))
        expect_equal(len(sent), 10, "messages that the channel took")
        first = [message["n"] for message in await receive_all(layer, "a", 4)]
        sent += await _sent([layer], "a", range(50, 100))
        expect_equal(len(sent), 14, "messages that the channel took, four of which had been received")
        received = first + [message["n"] for message in await receive_all(layer, "a", 10)]
        expect_equal(sorted(received), sent, "received messages")
        await expect_silence(layer, "a")


async def check_capacity_is_exact_under_several_layers(make_layer: LayerFactory) -> None:
    """Check this with several layer objects, too."""
    async with (
        fresh_layer(make_layer, capacity=10) as layer,
        another_layer(make_layer, capacity=10) as second,
        another_layer(make_layer, capacity=10) as third,
    ):
        sent = await _sent([layer, second, third], "a", range(60))
        expect_equal(len(sent), 10, "messages that the channel took")
        received = [message["n"] for message in await receive_all(layer, "a", 10)]
        expect_equal(sorted(received), sent, "received messages")
        await expect_silence(layer, "a")


async def check_a_full_local_channel_drops_messages(make_layer: LayerFactory) -> None:
    """Check that each message is received, refused with ChannelFull, or dropped and counted."""
    async with fresh_layer(make_layer, capacity=10) as layer:
        await _check_local(layer, [layer])


async def check_a_full_local_channel_drops_messages_of_several_layers(make_layer: LayerFactory) -> None:
    """Check the same with senders that do not know of each other."""
    async with (
        fresh_layer(make_layer, capacity=10) as layer,
        another_layer(make_layer, capacity=10) as second,
        another_layer(make_layer, capacity=10) as third,
    ):
        await _check_local(layer, [layer, second, third])


async def _check_local(layer: ChannelLayer, senders: list[ChannelLayer]) -> None:
    channel = await layer.new_channel()
    sent = await _sent(senders, channel, range(60))
    expect(len(sent) >= 10, f"only {len(sent)} messages were sent to a channel that holds 10")
    await count_dropped(layer, channel, len(sent) - 10)
    statistics = await layer.channel_statistics(channel)
    expect_equal(statistics["messages_pending"], 10, f"unread messages of {channel}")
    received = [message["n"] for message in await receive_all(layer, channel, 10)]
    expect(set(received) <= set(sent), f"received {received} of which some were refused: {sent} were sent")
    expect_equal(len(set(received)), 10, "different messages")
    await expect_silence(layer, channel)


async def check_receiving_makes_room(make_layer: LayerFactory) -> None:
    """Check that a received message makes room: at once in an ordinary channel, and soon in a process-local one."""
    for capacity in (1, 5, 100):
        async with (
            fresh_layer(make_layer, capacity=capacity) as layer,
            another_layer(make_layer, capacity=capacity) as sender,
        ):
            for channel in await both_kinds(layer):
                for number in range(capacity):
                    await sender.send(channel, {"n": number})
                for number in range(capacity, capacity + 5):
                    await refused(sender, channel, {}, layer)
                    expect_equal(await receive(layer, channel), {"n": number - capacity}, f"message of {channel}")
                    if "!" in channel:
                        await send_when_there_is_room(sender, channel, {"n": number})
                    else:
                        await within(sender.send(channel, {"n": number}), f"send to {channel}, which has room for one")
                if "!" not in channel:
                    refusals = (await sender.channel_statistics(channel))["channel_full_count"]
                    expect_equal(refusals, 5, f"messages that {channel} has refused")


async def check_channel_capacity_patterns(make_layer: LayerFactory) -> None:
    """Check globs and compiled patterns over whole names: the first match counts, else `capacity`."""
    capacities = {"jobs.?": 1, re.compile(r"jobs\.[a-z]+"): 3, "jobs.*": 4, "wide.*!*": 5, "*.narrow": 6}
    async with fresh_layer(make_layer, capacity=2, channel_capacity=capacities) as layer:
        channels = {
            "jobs.1": 1,
            "jobs.a": 1,
            "jobs.ab": 3,
            "jobs.ab.narrow": 3,
            "jobs.12": 4,
            "jobs": 2,
            "my.jobs.1": 2,
            await layer.new_channel("wide"): 5,
            await layer.new_channel("jobs"): 4,
            await layer.new_channel("other"): 2,
            "wide.x": 2,
            "x.narrow": 6,
        }
        # `jobs.<hex>!1` may begin with a letter, and then the second pattern matches it.
        channels = {
            name: 3 if "!" in name and re.match(r"jobs\.[a-z]", name) else capacity
            for name, capacity in channels.items()
        }
        for channel, capacity in channels.items():
            for number in range(capacity):
                await layer.send(channel, {"n": number})
            error = await refused(layer, channel, {})
            expect_equal(error.capacity, capacity, f"the capacity of {channel}")
            await receive_all(layer, channel, capacity)


CHECKS = (
    check_a_full_channel_affects_no_other,
    check_capacity_is_exact_under_many_senders,
    check_a_full_local_channel_drops_messages,
    check_channel_capacity_patterns,
)
SHARED_CHECKS = (
    check_capacity_is_exact_under_several_layers,
    check_a_full_local_channel_drops_messages_of_several_layers,
    check_receiving_makes_room,
)
