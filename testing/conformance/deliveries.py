"""Check messages that a server takes and acknowledges."""

from __future__ import annotations

import asyncio

from asgibus.layers.channel_layer import ChannelLayer
from asgibus.layers.contract import Bus, Delivery
from asgibus.testing.conformance.recorder import Recorder
from asgibus.testing.conformance.tools import (
    PATIENCE_SECONDS,
    SILENCE_SECONDS,
    LayerFactory,
    expect,
    expect_equal,
    expect_error,
    expect_silence,
    fresh_layer,
    receive,
    until,
    within,
)


async def _take(bus: Bus, channel: str, number: int) -> list[Delivery]:
    """Take that many messages, in as many calls as it takes."""
    taken: list[Delivery] = []
    while len(taken) < number:
        taken += await within(bus.take(channel, number - len(taken)), f"{number} messages of {channel} to take")
    return taken


def _summaries(deliveries: list[Delivery]) -> list[tuple[str, object, int]]:
    return [(each.channel, each.message["n"], each.attempt) for each in deliveries]


async def _nothing_left(layer: ChannelLayer, channel: str) -> None:
    """Check that no message is unread, and none taken but not acknowledged."""
    async with layer.bus("w", Recorder()) as bus:
        taking = asyncio.create_task(bus.take(channel, 10))
        await asyncio.wait([taking], timeout=SILENCE_SECONDS)
        bus.stop_claiming()
        expect_equal(_summaries(await within(taking, "take, stopped")), [], f"further deliveries from {channel}")


async def check_messages_are_taken_in_order_and_up_to_a_limit(make_layer: LayerFactory) -> None:
    """Check the order, the limit, and that each is the first attempt."""
    async with fresh_layer(make_layer) as layer, layer.bus("w", Recorder()) as bus:
        for number in range(5):
            await layer.send("jobs", {"n": number})
        first = await within(bus.take("jobs", 3), "messages to take")
        expect(1 <= len(first) <= 3, f"{len(first)} messages were taken where the limit is 3")
        others = await _take(bus, "jobs", 5 - len(first))
        expect_equal(_summaries(first + others), [("jobs", number, 1) for number in range(5)], "deliveries")
        for delivery in first + others:
            bus.acknowledge(delivery)
        await layer.send("jobs", {"n": 5})
        expect_equal(_summaries(await _take(bus, "jobs", 1)), [("jobs", 5, 1)], "next deliveries")


async def check_take_waits_until_it_is_stopped(make_layer: LayerFactory) -> None:
    """Check that take waits for a message, and returns nothing once it is stopped."""
    async with fresh_layer(make_layer) as layer, layer.bus("w", Recorder()) as bus:
        taking = asyncio.create_task(bus.take("jobs", 5))
        await asyncio.sleep(0.02)
        await layer.send("jobs", {"n": 1})
        expect_equal(_summaries(await within(taking, "a message to take")), [("jobs", 1, 1)], "delivery after a wait")
        taking = asyncio.create_task(bus.take("jobs", 5))
        done, _ = await asyncio.wait([taking], timeout=0.05)
        expect(not done, "take from an empty channel did not wait")
        bus.stop_claiming()
        expect_equal(await within(taking, "take, stopped", 2), [], "deliveries of a call that was stopped")
        await layer.send("jobs", {"n": 2})
        expect_equal(await within(bus.take("jobs", 5), "take, stopped", 2), [], "deliveries after a stop")
        expect_equal(await receive(layer, "jobs"), {"n": 2}, "message that was not taken")


async def check_an_acknowledged_message_is_not_redelivered(make_layer: LayerFactory) -> None:
    """Check that unacknowledged messages are redelivered when their consumer has left, as the second attempt."""
    async with fresh_layer(make_layer) as layer:
        for number in range(4):
            await layer.send("jobs", {"n": number})
        async with layer.bus("w", Recorder()) as bus:
            deliveries = await _take(bus, "jobs", 4)
            await expect_silence(layer, "jobs")
            bus.acknowledge(deliveries[0])
            bus.acknowledge(deliveries[2])
        async with layer.bus("w", Recorder()) as bus:
            redelivered = await _take(bus, "jobs", 2)
            expect_equal(sorted(_summaries(redelivered)), [("jobs", 1, 2), ("jobs", 3, 2)], "redelivered messages")
            for delivery in redelivered:
                bus.acknowledge(delivery)
        await _nothing_left(layer, "jobs")


async def check_a_message_that_is_given_back_is_redelivered(make_layer: LayerFactory) -> None:
    """Check that anyone can take it, as the next attempt and after its delay, and that a full channel takes it back."""
    async with fresh_layer(make_layer, capacity=1) as layer:
        clock = asyncio.get_running_loop().time
        async with layer.bus("w", Recorder()) as bus, layer.bus("w", Recorder()) as other:
            await layer.send("jobs", {"n": 1})
            (delivery,) = await _take(bus, "jobs", 1)
            await layer.send("jobs", {"n": 2})
            bus.give_back(delivery)
            await within(bus.drain(), "drain")
            deliveries = await _take(other, "jobs", 2)
            expect_equal(sorted(_summaries(deliveries)), [("jobs", 1, 2), ("jobs", 2, 1)], "deliveries")
            for delivery in deliveries:
                if delivery.attempt == 1:
                    other.acknowledge(delivery)
                else:
                    began = clock()
                    other.give_back(delivery, delay=0.2)
            (delivery,) = await _take(bus, "jobs", 1)
            waited = clock() - began
            expect_equal(_summaries([delivery]), [("jobs", 1, 3)], "delivery after a delay")
            expect(0.19 <= waited < PATIENCE_SECONDS, f"it was taken {waited:.3f} s into its delay of 0.2 s")
            bus.acknowledge(delivery)
            bus.give_back(delivery)  # does nothing: the delivery is acknowledged
            await within(bus.drain(), "drain")
        await _nothing_left(layer, "jobs")


async def check_a_message_taken_at_most_once_is_not_redelivered(make_layer: LayerFactory) -> None:
    """Check this without an acknowledgement."""
    async with fresh_layer(make_layer) as layer:
        for number in range(2):
            await layer.send("jobs", {"n": number})
        async with layer.bus("w", Recorder()) as bus:
            for number in range(2):
                (delivery,) = await within(bus.take("jobs", 1, once=True), "a message to take")
                expect_equal(_summaries([delivery]), [("jobs", number, 1)], "deliveries")
        await _nothing_left(layer, "jobs")


async def check_each_message_goes_to_one_consumer_or_reader(make_layer: LayerFactory) -> None:
    """Check that each message is delivered once."""
    received: list[object] = []

    async def take(bus: Bus) -> None:
        while deliveries := await bus.take("jobs", 3):
            for delivery in deliveries:
                received.append(delivery.message["n"])
                bus.acknowledge(delivery)

    async def read(layer: ChannelLayer) -> None:
        while True:
            received.append((await layer.receive("jobs"))["n"])

    async with (
        fresh_layer(make_layer, capacity=1000) as layer,
        layer.bus("w", Recorder()) as one,
        layer.bus("w", Recorder()) as two,
    ):
        takers = [asyncio.create_task(take(one)), asyncio.create_task(take(two))]
        reader = asyncio.create_task(read(layer))
        for number in range(100):
            await layer.send("jobs", {"n": number})
        await until(lambda: len(received) >= 100, what="that 100 messages were taken or received")
        reader.cancel()
        one.stop_claiming()
        two.stop_claiming()
        await within(asyncio.wait([*takers, reader]), "the end of the takers")
        expect_equal(sorted(map(str, received)), sorted(map(str, range(100))), "deliveries and received messages")


async def check_take_refuses_bad_names(make_layer: LayerFactory) -> None:
    """Check that take raises TypeError."""
    async with fresh_layer(make_layer) as layer, layer.bus("w", Recorder()) as bus:
        for name in ("", "a b", "a!b!c"):
            await expect_error(TypeError, bus.take(name, 1), f"take({name!r})")


CHECKS = (
    check_messages_are_taken_in_order_and_up_to_a_limit,
    check_take_waits_until_it_is_stopped,
    check_an_acknowledged_message_is_not_redelivered,
    check_a_message_that_is_given_back_is_redelivered,
    check_a_message_taken_at_most_once_is_not_redelivered,
    check_each_message_goes_to_one_consumer_or_reader,
    check_take_refuses_bad_names,
)
