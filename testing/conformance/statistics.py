"""Check the statistics of channels."""

from __future__ import annotations

import asyncio

from asgibus.layers.channel_layer import ChannelLayer
from asgibus.layers.contract import Statistics
from asgibus.layers.errors import ChannelFull
from asgibus.testing.conformance.tools import (
    PATIENCE_SECONDS,
    LayerFactory,
    another_layer,
    both_kinds,
    expect,
    expect_equal,
    expect_error,
    fresh_layer,
    receive,
    receive_all,
)


def _numbers(statistics: Statistics) -> tuple[int, int, int]:
    return (
        statistics["messages_count"],
        statistics["messages_pending"],
        statistics["channel_full_count"],
    )


async def check_a_channel_has_statistics(make_layer: LayerFactory) -> None:
    """Check counts and age of an ordinary channel; all values of an unknown channel are 0."""
    async with fresh_layer(make_layer, capacity=3) as layer:
        expect_equal(
            _numbers(await layer.channel_statistics("unknown")), (0, 0, 0), "sent, pending, full of no channel"
        )
        for number in range(3):
            await layer.send("a", {"n": number})
        for _ in range(2):
            await expect_error(ChannelFull, layer.send("a", {}), "send to the full channel")
        await layer.group_add("group", "a")
        await layer.group_send("group", {})
        await asyncio.sleep(0.15)  # the clock of the store cannot be set by a check
        await layer.send("b", {})
        statistics = await layer.channel_statistics("a")
        expect_equal(_numbers(statistics), (3, 3, 3), "sent, pending, full")
        age = statistics["messages_max_age"]
        expect(0.14 <= age < 5, f"the oldest message is 0.15 s old, not {age}")
        await receive(layer, "a")
        expect_equal(_numbers(await layer.channel_statistics("a")), (3, 2, 3), "sent, pending, full, one was received")
        await receive_all(layer, "a", 2)
        statistics = await layer.channel_statistics("a")
        expect_equal(_numbers(statistics), (3, 0, 3), "sent, pending, full of the empty channel")
        expect_equal(statistics["messages_max_age"], 0.0, "the age of nothing")


async def _arrived(layer: ChannelLayer, channel: str, expected: tuple[int, int, int]) -> Statistics:
    """Wait until a process-local channel has these statistics, and return them: its messages have to arrive first."""
    deadline = asyncio.get_running_loop().time() + PATIENCE_SECONDS
    while _numbers(statistics := await layer.channel_statistics(channel)) != expected:
        if asyncio.get_running_loop().time() > deadline:
            expect_equal(_numbers(statistics), expected, f"sent, pending, full of {channel}")
        await asyncio.sleep(0.002)
    return statistics


async def check_a_local_channel_has_statistics(make_layer: LayerFactory) -> None:
    """Check the statistics of a process-local channel that has a delayed message among the others."""
    async with fresh_layer(make_layer, capacity=3) as layer:
        local, other = await layer.new_channel(), await layer.new_channel()
        expect_equal(_numbers(await layer.channel_statistics(local)), (0, 0, 0), "sent, pending, full of a new channel")
        await layer.send(local, {}, delay=60)
        for sent in (2, 3):
            await layer.send(local, {})
            await _arrived(layer, local, (sent, sent, 0))
        await layer.group_add("group", local)
        await layer.group_add("group", other)
        await layer.group_send("group", {})
        await asyncio.sleep(0.15)  # the clock of the store cannot be set by a check
        statistics = await _arrived(layer, local, (3, 3, 1))
        age = statistics["messages_max_age"]
        expect(0.14 <= age < 5, f"the oldest message is 0.15 s old, not {age}")
        await _arrived(layer, other, (1, 1, 0))
        for pending in (2, 1):
            await receive(layer, local)
            expect_equal(_numbers(await layer.channel_statistics(local)), (3, pending, 1), "sent, pending, full")
        age = (await layer.channel_statistics(local))["messages_max_age"]
        expect_equal(age, 0.0, "the age of a message that is delayed")


async def check_only_the_owner_reads_statistics_of_a_local_channel(make_layer: LayerFactory) -> None:
    """Check that another layer object raises a TypeError for the statistics of a process-local channel."""
    async with fresh_layer(make_layer) as layer, another_layer(make_layer) as maker:
        local = await maker.new_channel()
        for _ in range(2):
            await layer.send(local, {})
        await receive(maker, local)
        await _arrived(maker, local, (2, 1, 0))
        await expect_error(TypeError, layer.channel_statistics(local), "statistics of another's channel")


async def check_reading_statistics_changes_nothing(make_layer: LayerFactory) -> None:
    """Check that all messages are still there, in order."""
    async with fresh_layer(make_layer) as layer:
        for channel in await both_kinds(layer):
            for number in range(5):
                await layer.send(channel, {"n": number}, delay=0.05 if number == 4 else 0)
            if "!" in channel:
                await _arrived(layer, channel, (5, 5, 0))
            found = [_numbers(await layer.channel_statistics(channel)) for _ in range(5)]
            expect_equal(found, [found[0]] * 5, f"sent, pending, full of {channel}, read again and again")
            await layer.global_statistics()
            received = [message["n"] for message in await receive_all(layer, channel, 5)]
            expect_equal(received, list(range(5)), f"messages of {channel}")


async def check_global_statistics(make_layer: LayerFactory) -> None:
    """Check the sums of all ordinary channels, and the age of the oldest message of all."""
    async with fresh_layer(make_layer, capacity=2) as layer:
        expect_equal(_numbers(await layer.global_statistics()), (0, 0, 0), "sent, pending, full of nothing")
        for channel in ("a", "b", "b"):
            await layer.send(channel, {})
        await layer.send(await layer.new_channel(), {})
        await expect_error(ChannelFull, layer.send("b", {}), "send to the full channel")
        await receive(layer, "b")
        await asyncio.sleep(0.05)  # the clock of the store cannot be set by a check
        statistics = await layer.global_statistics()
        expect_equal(_numbers(statistics), (3, 2, 1), "sent, pending, full of all ordinary channels")
        age = statistics["messages_max_age"]
        expect(0.04 <= age < 5, f"the oldest message is 0.05 s old, not {age}")


CHECKS = (
    check_a_channel_has_statistics,
    check_a_local_channel_has_statistics,
    check_reading_statistics_changes_nothing,
    check_global_statistics,
)
SHARED_CHECKS = (check_only_the_owner_reads_statistics_of_a_local_channel,)
