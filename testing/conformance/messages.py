"""Check messages: their order, values, sizes and limits."""

from __future__ import annotations

import asyncio
import math
from typing import Any

from asgibus.layers.codec import MESSAGE_BYTES, pack_message
from asgibus.layers.errors import MessageTooLarge
from asgibus.testing.conformance.tools import (
    LayerFactory,
    both_kinds,
    expect,
    expect_equal,
    expect_error,
    expect_silence,
    fresh_layer,
    receive,
    receive_all,
    within,
)

POWERS = (5, 7, 8, 15, 16, 31, 32, 62)  # around which an encoding may change
VALUES: dict[Any, Any] = {
    "bytes": b"\x00\xff",
    "no bytes": b"",
    "str": "\x00\u00fc\U0001f600",
    "no str": "",
    "float": [1.5, -0.0, math.inf, 5e-324, 1.7976931348623157e308],
    "none": None,
    "bool": [True, False],
    "list": [1, [2, b"3"], []],
    "dict": {"k": {"k": b"v"}, b"bytes": 1, 2: 3, "": {}},
    "integers": [
        sign * 2**bits + step for bits in (5, 7, 8, 15, 16, 31, 32, 62) for sign in (1, -1) for step in (-1, 0)
    ],
    "largest": 2**63 - 1,
    "smallest": -(2**63),
}
LENGTHS = (0, 1, 15, 16, 31, 32, 255, 256, 65_535, 65_536, 1_000_000)  # around lengths at which an encoding may change
NO_MESSAGES: list[Any] = [
    *({"n": 2**64}, {"n": -(2**63) - 1}, {"o": object()}, {"s": {1}}, {"lone surrogate": "\ud800"}),
    *([1], (), "text", b"bytes", 1, None),
]


def _types(value: object) -> object:
    """Return the types of a value and of its contents, because `True == 1` and `1 == 1.0`."""
    if isinstance(value, list):
        return [_types(item) for item in value]
    if isinstance(value, dict):
        return {(type(key), key): _types(item) for key, item in value.items()}
    return type(value)


async def check_messages_keep_their_order(make_layer: LayerFactory) -> None:
    """Check one sender and one reader: first in, first out."""
    async with fresh_layer(make_layer) as layer:
        for channel in await both_kinds(layer):
            for number in range(20):
                await layer.send(channel, {"n": number})
            received = [message["n"] for message in await receive_all(layer, channel, 20)]
            expect_equal(received, list(range(20)), f"messages of {channel}")


async def check_receive_waits(make_layer: LayerFactory) -> None:
    """Check that a reader that waits gets the message when it is sent."""
    async with fresh_layer(make_layer) as layer:
        for channel in await both_kinds(layer):
            receiving = asyncio.create_task(layer.receive(channel))
            done, _ = await asyncio.wait([receiving], timeout=0.05)
            expect(not done, f"receive from the empty channel {channel} did not wait")
            await layer.send(channel, {"n": 1})
            expect_equal(await within(receiving, f"receive from {channel}"), {"n": 1}, "message after a wait")


async def check_values_keep_their_types(make_layer: LayerFactory) -> None:
    """Check signed integers of 64 bits, floats, true, false, none, bytes, str, lists and dicts."""
    async with fresh_layer(make_layer) as layer:
        for channel in await both_kinds(layer):
            await layer.send(channel, VALUES)
            received = await receive(layer, channel)
            expect_equal(received, VALUES, f"message of {channel}")
            expect_equal(_types(received), _types(VALUES), f"types in a message of {channel}")


async def check_a_message_is_a_copy(make_layer: LayerFactory) -> None:
    """Check that altering a dict after `send` changes nothing, and that tuples are received as lists."""
    async with fresh_layer(make_layer) as layer:
        for channel in await both_kinds(layer):
            message: dict[str, Any] = {"list": [1], "tuple": (1, 2)}
            await layer.send(channel, message)
            message["list"].append(2)
            message["new"] = 1
            expect_equal(await receive(layer, channel), {"list": [1], "tuple": [1, 2]}, f"message of {channel}")


async def check_invalid_messages_are_refused(make_layer: LayerFactory) -> None:
    """Check that send raises TypeError, and sends nothing."""
    async with fresh_layer(make_layer) as layer:
        for channel in await both_kinds(layer):
            await layer.group_add("group", channel)
            for message in NO_MESSAGES:
                await expect_error(TypeError, layer.send(channel, message), f"send({message!r})")
                await expect_error(TypeError, layer.group_send("group", message), f"group_send({message!r})")
            await expect_silence(layer, channel)


async def check_messages_of_many_sizes(make_layer: LayerFactory) -> None:
    """Check strings, bytes, lists and dicts of lengths at which encodings change, and deep ones."""
    deep: list[Any] = []
    for _ in range(450):
        deep = [deep]
    async with fresh_layer(make_layer) as layer:
        for channel in await both_kinds(layer):
            for length in LENGTHS:
                items = min(length, 65_536)
                message = {
                    "b": b"\xff" * length,
                    "s": "\u00fc" * length,
                    "l": [None] * items,
                    "d": {str(number): number for number in range(min(items, 300))},
                }
                await layer.send(channel, message)
                expect(await receive(layer, channel) == message, f"a message of length {length} came as another one")
            await layer.send(channel, {"deep": deep})
            expect(await receive(layer, channel) == {"deep": deep}, "a deep message came as another one")
            await layer.send(channel, {})
            expect_equal(await receive(layer, channel), {}, "the empty message")


async def check_a_message_has_a_limit(make_layer: LayerFactory) -> None:
    """Check that 16 MiB, packed, are carried, and one byte more is MessageTooLarge, also for a group."""
    size = MESSAGE_BYTES - len(pack_message({"b": bytes(65536)})) + 65536
    async with fresh_layer(make_layer) as layer:
        for channel in await both_kinds(layer):
            await layer.send(channel, {"b": bytes(size)})
            received = await receive(layer, channel)
            expect(received == {"b": bytes(size)}, "the largest message came as another one")
            large = {"b": bytes(size + 1)}
            error = await expect_error(MessageTooLarge, layer.send(channel, large), "send of more than the limit")
            expect(isinstance(error, layer.MessageTooLarge), "layer.MessageTooLarge is another error")
            expect_equal((error.size, error.limit), (MESSAGE_BYTES + 1, MESSAGE_BYTES), "size and limit of the error")
            await layer.group_add("group", channel)
            await expect_error(MessageTooLarge, layer.group_send("group", large), "group_send of more than the limit")
            await expect_silence(layer, channel)


async def check_flush_deletes_messages_and_groups(make_layer: LayerFactory) -> None:
    """Check ordinary and process-local channels, delayed messages, and counts."""
    async with fresh_layer(make_layer, capacity=2) as layer:
        channels = await both_kinds(layer)
        for channel in channels:
            await layer.send(channel, {"n": 1})
            await layer.send(channel, {"n": 1}, delay=0.2)
            await layer.group_add("group", channel)
        await layer.send(await layer.new_channel(), {})
        await asyncio.sleep(0.05)  # for the messages to arrive
        await layer.flush()
        for channel in channels:
            statistics = await layer.channel_statistics(channel)
            expect_equal(statistics["messages_pending"], 0, f"unread in {channel}")
            expect_equal(statistics["messages_count"], 0, f"messages sent to {channel}, after flush")
        await layer.group_send("group", {"n": 2})
        await asyncio.sleep(0.3)  # the clock of the store cannot be set by a check
        for channel in channels:
            await layer.send(channel, {"n": 3})
            await layer.send(channel, {"n": 4})
            received = await receive_all(layer, channel, 2)
            expect_equal(received, [{"n": 3}, {"n": 4}], f"messages received from {channel} after flush")


async def check_a_closed_layer_can_be_used_again(make_layer: LayerFactory) -> None:
    """Check that messages of ordinary channels are still there."""
    async with fresh_layer(make_layer) as layer:
        await layer.send("a", {"n": 1})
        await layer.close()
        await layer.close()
        await layer.send("a", {"n": 2})
        expect_equal(await receive_all(layer, "a", 2), [{"n": 1}, {"n": 2}], "messages sent before and after close")
        local = await layer.new_channel()
        await layer.send(local, {"n": 3})
        expect_equal(await receive(layer, local), {"n": 3}, "message of a process-local channel made after close")


async def check_attributes_for_channels(make_layer: LayerFactory) -> None:
    """Check the attributes that Channels reads, with the defaults of the specification."""
    async with fresh_layer(make_layer) as layer:
        expect_equal((layer.expiry, layer.group_expiry, layer.capacity), (60, 86400, 100), "the default options")
        expect(set(layer.extensions) >= {"groups", "flush"}, "the extensions 'groups' and 'flush' are not announced")


CHECKS = (
    check_messages_keep_their_order,
    check_receive_waits,
    check_values_keep_their_types,
    check_a_message_is_a_copy,
    check_invalid_messages_are_refused,
    check_messages_of_many_sizes,
    check_a_message_has_a_limit,
    check_flush_deletes_messages_and_groups,
    check_a_closed_layer_can_be_used_again,
    check_attributes_for_channels,
)
