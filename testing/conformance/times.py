"""Check delays and expiry, by the clock of the store, which a check cannot set."""

from __future__ import annotations

import asyncio
import math
from typing import Any

from asgibus.layers.errors import ChannelFull
from asgibus.testing.conformance.tools import (
    LayerFactory,
    another_layer,
    both_kinds,
    by_the_clock,
    expect,
    expect_equal,
    expect_error,
    expect_silence,
    fresh_layer,
    receive,
    receive_all,
    refused,
    within,
)

TICK_SECONDS = 0.005  # stores may count in milliseconds, and round
BAD_DELAYS: list[Any] = [-1, -0.001, 1e15, math.nan, math.inf, "1", None, True]


@by_the_clock
async def check_expired_messages_are_never_delivered(make_layer: LayerFactory, second: float) -> None:
    """Check that they are not counted either. A delayed message expires as if it had been sent when it was due."""
    async with fresh_layer(make_layer, expiry=second, capacity=2) as layer:
        channels = await both_kinds(layer)
        for channel in channels:
            await layer.send(channel, {"n": "old"})
            await layer.send(channel, {"n": "late"}, delay=1.1 * second)
        quiet = "quiet", await layer.new_channel()  # nothing is sent to these before they are read
        for channel in quiet:
            await layer.send(channel, {"n": "old"})
        await asyncio.sleep(0.6 * second)
        for channel in quiet:
            await layer.send(channel, {"n": "young"})
        await asyncio.sleep(0.6 * second)
        for channel in quiet:
            expect_equal(await receive(layer, channel), {"n": "young"}, f"first message of {channel}")
        for channel in channels:
            expect_equal((await layer.channel_statistics(channel))["messages_pending"], 1, f"unread in {channel}")
            await layer.send(channel, {"n": "new"})
            await refused(layer, channel, {"n": "more"})
            received = [message["n"] for message in await receive_all(layer, channel, 2)]
            expect_equal(received, ["late", "new"], f"messages received from {channel}")
            await expect_silence(layer, channel)


@by_the_clock
async def check_a_delayed_message_comes_when_it_is_due(make_layer: LayerFactory, second: float) -> None:
    """Check that delayed messages arrive soon after they are due, and in that order."""
    async with fresh_layer(make_layer) as layer:
        clock = asyncio.get_running_loop().time
        for channel in await both_kinds(layer):
            began = clock()
            await layer.send(channel, {"n": 3}, delay=0.8 * second)
            await layer.send(channel, {"n": 2}, delay=0.4 * second)
            await layer.send(channel, {"n": 1})
            await layer.send(channel, {"n": 1}, delay=0)
            for number, delay in ((1, 0.0), (1, 0.0), (2, 0.4 * second), (3, 0.8 * second)):
                message, waited = await receive(layer, channel), clock() - began
                expect_equal(message, {"n": number}, f"message of {channel} after {waited:.3f} s")
                expect(waited >= delay - TICK_SECONDS, f"a message of {channel} came {waited:.3f} s into {delay} s")
                expect(waited < delay + 2, f"a message of {channel} came {waited:.3f} s after it was sent, not {delay}")


@by_the_clock
async def check_a_waiting_reader_gets_delayed_messages(make_layer: LayerFactory, second: float) -> None:
    """Check a reader that waits for a later message already, and that other messages are not held up."""
    async with fresh_layer(make_layer) as layer:
        for channel in await both_kinds(layer):
            receiving = asyncio.create_task(layer.receive(channel))
            await asyncio.sleep(0.02)
            await layer.send(channel, {"n": 1}, delay=0.1 * second)
            expect_equal(
                await within(receiving, "the only message, which is due", second), {"n": 1}, "received message"
            )
            receiving_all = asyncio.create_task(receive_all(layer, channel, 3))
            await asyncio.sleep(0.02)
            await layer.send(channel, {"n": "late"}, delay=0.3 * second)
            await asyncio.sleep(0.02)
            await layer.send(channel, {"n": "soon"}, delay=0.1 * second)
            await asyncio.sleep(0.02)
            await layer.send(channel, {"n": "now"})
            received = [message["n"] for message in await receiving_all]
            expect_equal(received, ["now", "soon", "late"], f"messages received from {channel}")


@by_the_clock
async def check_delayed_messages_count_for_the_capacity(make_layer: LayerFactory, second: float) -> None:
    """Check that it counts at once, as pending, and has no age."""
    async with fresh_layer(make_layer, capacity=2) as layer:
        for channel in await both_kinds(layer):
            await layer.send(channel, {"n": 2}, delay=0.2 * second)
            await layer.send(channel, {"n": 1})
            await refused(layer, channel, {})
            await expect_error(ChannelFull, layer.send(channel, {}, delay=0.1), f"delayed send to the full {channel}")
            expect_equal((await layer.channel_statistics(channel))["messages_pending"], 2, f"unread in {channel}")
            expect_equal(await receive(layer, channel), {"n": 1}, f"message of {channel}")
            age = (await layer.channel_statistics(channel))["messages_max_age"]
            expect_equal(age, 0.0, f"the age of a delayed message in {channel}")
            expect_equal(await receive(layer, channel), {"n": 2}, f"message of {channel}")
            await layer.send(channel, {"n": 3}, delay=0.01 * second)
            await layer.send(channel, {"n": 4}, delay=0.02 * second)
            expect_equal(await receive_all(layer, channel, 2), [{"n": 3}, {"n": 4}], f"messages of {channel}")


async def check_a_delayed_message_outlives_the_close_of_its_sender(make_layer: LayerFactory) -> None:
    """Check that the message is kept by the store."""
    async with fresh_layer(make_layer) as layer:
        await layer.send("a", {"n": 1}, delay=0.1)
        await layer.close()
        expect_equal(await receive(layer, "a"), {"n": 1}, "message that was delayed before the close")


async def check_a_delayed_message_outlives_its_sender(make_layer: LayerFactory) -> None:
    """Check that another layer object receives it."""
    async with fresh_layer(make_layer) as layer:
        for channel in await both_kinds(layer):
            async with another_layer(make_layer) as sender:
                await sender.send(channel, {"n": 1}, delay=0.2)
            expect_equal(await receive(layer, channel), {"n": 1}, f"message of {channel} whose sender is closed")


async def check_bad_delays_are_refused(make_layer: LayerFactory) -> None:
    """Check for ValueError unless it is a number of seconds from 0 to ten years, and that nothing is sent."""
    async with fresh_layer(make_layer) as layer:
        for channel in await both_kinds(layer):
            for delay in BAD_DELAYS:
                await expect_error(ValueError, layer.send(channel, {}, delay=delay), f"send(delay={delay!r})")
            await expect_silence(layer, channel)


CHECKS = (
    check_expired_messages_are_never_delivered,
    check_a_delayed_message_comes_when_it_is_due,
    check_a_waiting_reader_gets_delayed_messages,
    check_delayed_messages_count_for_the_capacity,
    check_a_delayed_message_outlives_the_close_of_its_sender,
    check_bad_delays_are_refused,
)
SHARED_CHECKS = (check_a_delayed_message_outlives_its_sender,)
