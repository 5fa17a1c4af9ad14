"""Check readers that are cancelled, and several readers of one channel."""

from __future__ import annotations

import asyncio
import random

from asgibus.layers.channel_layer import ChannelLayer
from asgibus.testing.conformance.tools import (
    PATIENCE_SECONDS,
    LayerFactory,
    another_layer,
    both_kinds,
    expect,
    expect_equal,
    fresh_layer,
    receive,
    send_when_there_is_room,
    until,
    within,
)


async def check_a_cancelled_receive_loses_nothing(make_layer: LayerFactory) -> None:
    """Check this at random points, and that the order is kept."""
    count = 100
    async with fresh_layer(make_layer) as layer:
        for channel in await both_kinds(layer):
            dice = random.Random(7)
            sending = asyncio.create_task(_send(layer, channel, count, dice))
            received: list[int] = []
            cancelled = 0
            async with asyncio.timeout(3 * PATIENCE_SECONDS):
                while len(received) < count:
                    try:
                        async with asyncio.timeout(dice.uniform(0, 0.001)):
                            received.append((await layer.receive(channel))["n"])
                    except TimeoutError:
                        cancelled += 1
                        if cancelled % 50 == 0:  # otherwise a slow machine might receive nothing in time
                            received.append((await receive(layer, channel))["n"])
            await sending
            expect_equal(received, list(range(count)), f"messages received from {channel}")
            expect(cancelled, "no reader was cancelled: there was nothing to see")


async def _send(layer: ChannelLayer, channel: str, count: int, dice: random.Random) -> None:
    for number in range(count):
        await send_when_there_is_room(layer, channel, {"n": number})
        if number % 8 == 0:
            await asyncio.sleep(dice.uniform(0, 0.002))


async def check_a_cancelled_receive_passes_its_message_on(make_layer: LayerFactory) -> None:
    """Check that another waiting reader gets the message."""
    async with fresh_layer(make_layer) as layer:
        for channel in await both_kinds(layer):
            for number in range(30):
                first, second = (asyncio.create_task(layer.receive(channel)) for _ in range(2))
                await asyncio.sleep(0)
                sending = asyncio.create_task(layer.send(channel, {"n": number}))
                await asyncio.sleep(0)
                first.cancel()
                await sending
                await asyncio.wait([first])
                if first.cancelled():
                    message = await within(second, f"the message of a reader of {channel} that was cancelled")
                    expect_equal(message, {"n": number}, f"message of {channel}")
                else:
                    expect_equal(first.result(), {"n": number}, f"message of {channel}")
                    second.cancel()
                    await asyncio.wait([second])


async def check_each_message_goes_to_one_of_three_readers(make_layer: LayerFactory) -> None:
    """Check that each message is delivered once."""
    async with fresh_layer(make_layer) as layer:
        for channel in await both_kinds(layer):
            await _share(layer, channel, [layer] * 3, cancelling=False)


async def check_each_message_goes_to_one_of_several_layers(make_layer: LayerFactory) -> None:
    """Check that each message is delivered once while readers are cancelled at random points."""
    async with (
        fresh_layer(make_layer) as layer,
        another_layer(make_layer) as second,
        another_layer(make_layer) as third,
    ):
        await _share(layer, "ordinary", [layer, second, third], cancelling=True)


async def _share(layer: ChannelLayer, channel: str, layers: list[ChannelLayer], *, cancelling: bool) -> None:
    count = 90
    received: list[int] = []
    dice = random.Random(5)

    async def read(reader: ChannelLayer) -> None:
        while True:
            try:
                async with asyncio.timeout(dice.uniform(0, 0.02) if cancelling else None):
                    received.append((await reader.receive(channel))["n"])
            except TimeoutError:
                pass

    readers = [asyncio.create_task(read(each)) for each in layers]
    try:
        for number in range(count):
            await send_when_there_is_room(layer, channel, {"n": number})
        await until(lambda: len(received) >= count, what=f"the arrival of {count} messages of {channel}")
        done, _ = await asyncio.wait(readers, timeout=0.05)
        expect(not done, f"a reader of {channel} ended: {done}")
    finally:
        for reader in readers:
            reader.cancel()
        await asyncio.wait(readers)
    expect_equal(sorted(received), list(range(count)), f"messages received from {channel}")


CHECKS = (
    check_a_cancelled_receive_loses_nothing,
    check_a_cancelled_receive_passes_its_message_on,
    check_each_message_goes_to_one_of_three_readers,
)
SHARED_CHECKS = (check_each_message_goes_to_one_of_several_layers,)
