"""Sending and receiving: the public half of the contract, on every layer."""

import asyncio
import random
from contextlib import suppress
from typing import Any

import pytest

from asgibus.layers import ChannelFull, ChannelLayer, MessageTooLarge
from support.bus import MakeLayer, until

pytestmark = pytest.mark.anyio

EVERYTHING = {
    "bytes": b"\x00\xff",
    "str": "\x00\u00fc\U0001f600",
    "max": 2**63 - 1,
    "min": -(2**63),
    "float": 1.5,
    "none": None,
    "true": True,
    "list": [1, [2, b"3"]],
    "dict": {"k": {"k": b"v"}, b"bytes": 1, 2: 3},
}


async def silent(layer: ChannelLayer, channel: str) -> bool:
    """Whether there is nothing to receive, now that all that was sent has arrived."""
    try:
        async with asyncio.timeout(0.1):
            await layer.receive(channel)
    except TimeoutError:
        return True
    return False


@pytest.fixture(params=["ordinary", "local"])
async def channel(request: pytest.FixtureRequest, layer: ChannelLayer) -> str:
    return "some.channel" if request.param == "ordinary" else await layer.new_channel()


async def test_messages_come_in_the_order_in_which_they_were_sent(layer: ChannelLayer, channel: str) -> None:
    for number in range(20):
        await layer.send(channel, {"n": number})
    assert [(await layer.receive(channel))["n"] for _ in range(20)] == list(range(20))


async def test_receive_waits(layer: ChannelLayer, channel: str) -> None:
    receiving = asyncio.create_task(layer.receive(channel))
    done, _ = await asyncio.wait([receiving], timeout=0.05)
    assert not done
    await layer.send(channel, {"n": 1})
    assert await asyncio.wait_for(receiving, 5) == {"n": 1}


async def test_values_keep_their_types(layer: ChannelLayer, channel: str) -> None:
    await layer.send(channel, EVERYTHING)
    received = await layer.receive(channel)
    assert received == EVERYTHING
    assert {key: type(value) for key, value in received.items()} == {k: type(v) for k, v in EVERYTHING.items()}


async def test_a_message_is_a_copy(layer: ChannelLayer, channel: str) -> None:
    message: dict[str, Any] = {"list": [1], "tuple": (1, 2)}
    await layer.send(channel, message)
    message["list"].append(2)
    message["new"] = 1
    assert await layer.receive(channel) == {"list": [1], "tuple": [1, 2]}


@pytest.mark.parametrize("message", [{"n": 2**64}, {"o": object()}, {"s": {1}}, [1], "text", None])
async def test_what_is_no_message_is_refused(layer: ChannelLayer, channel: str, message: Any) -> None:
    with pytest.raises(TypeError):
        await layer.send(channel, message)
    with pytest.raises(TypeError):
        await layer.group_send("group", message)
    assert await silent(layer, channel)


async def test_a_message_has_a_limit(layer: ChannelLayer, channel: str) -> None:
    large = {"b": bytes(17 * 1024 * 1024)}
    with pytest.raises(MessageTooLarge):
        await layer.send(channel, large)
    with pytest.raises(layer.MessageTooLarge):
        await layer.group_send("group", large)


@pytest.mark.parametrize("name", ["", "a\n", "a b", "\u00e9", "x" * 101, "!", "a!b!c", "a!", None, b"a"])
async def test_bad_channel_names_are_refused(layer: ChannelLayer, name: Any) -> None:
    with pytest.raises(TypeError):
        await layer.send(name, {})
    with pytest.raises(TypeError):
        await layer.receive(name)
    if name != "a!":
        with pytest.raises(TypeError):
            await layer.group_add("group", name)
        with pytest.raises(TypeError):
            await layer.group_discard("group", name)


@pytest.mark.parametrize("prefix", ["", "a\n", "a!", "a!b", "x" * 100])
async def test_bad_prefixes_are_refused(layer: ChannelLayer, prefix: str) -> None:
    with pytest.raises(TypeError):
        await layer.new_channel(prefix)


async def test_a_full_channel_is_an_error_and_no_other_channel_s_business(make_layer: MakeLayer) -> None:
    layer = make_layer(capacity=2)
    await layer.send("full", {"n": 1})
    await layer.send("full", {"n": 2})
    with pytest.raises(ChannelFull, match="'full' is at its capacity of 2") as raised:
        await layer.send("full", {"n": 3})
    assert isinstance(raised.value, layer.ChannelFull)
    await layer.send("other", {"n": 1})
    assert await layer.receive("full") == {"n": 1}
    await layer.send("full", {"n": 4})
    assert [await layer.receive("full") for _ in range(2)] == [{"n": 2}, {"n": 4}]


async def test_a_full_local_channel_takes_nothing_from_another_one(make_layer: MakeLayer) -> None:
    layer = make_layer(capacity=2)
    full, other = await layer.new_channel(), await layer.new_channel()
    for number in range(4):
        with suppress(ChannelFull):  # Redis takes it, and its reader drops it
            await layer.send(full, {"n": number})
    await layer.send(other, {"n": 5})
    assert await layer.receive(other) == {"n": 5}  # so the others have arrived, too
    assert [await layer.receive(full) for _ in range(2)] == [{"n": 0}, {"n": 1}]
    assert await silent(layer, full)


async def test_expired_messages_are_never_delivered(make_layer: MakeLayer) -> None:
    layer = make_layer(expiry=1, capacity=1)
    local = await layer.new_channel()
    for channel in ("ordinary", local):
        await layer.send(channel, {"n": "old"})
    await asyncio.sleep(1.2)  # by the clock of the store, which a test cannot turn
    for channel in ("ordinary", local):
        await layer.send(channel, {"n": "new"})  # the old one does not count for the capacity either
        assert await layer.receive(channel) == {"n": "new"}


async def test_new_channels_differ_and_begin_with_their_prefix(layer: ChannelLayer) -> None:
    names = [await layer.new_channel() for _ in range(5)] + [await layer.new_channel("chat.x") for _ in range(5)]
    assert len(set(names)) == 10
    assert all(name.startswith("specific.") and "!" in name for name in names[:5])
    assert all(name.startswith("chat.x.") and "!" in name for name in names[5:])
    for name in names:
        await layer.send(name, {"to": name})
    for name in reversed(names):
        assert await layer.receive(name) == {"to": name}


async def test_only_who_made_a_local_channel_receives_from_it(make_layer: MakeLayer) -> None:
    channel = await make_layer().new_channel()
    other = make_layer()
    with pytest.raises(TypeError, match="was made by another"):
        await other.receive(channel)


async def test_a_message_for_a_process_that_is_gone_is_dropped(layer: ChannelLayer) -> None:
    await layer.send("specific.0000000000000000!1", {"n": 1})


async def test_a_cancelled_receive_loses_nothing(layer: ChannelLayer, channel: str) -> None:
    count = 150
    dice = random.Random(7)

    async def send() -> None:
        for number in range(count):
            while True:
                try:
                    await layer.send(channel, {"n": number})
                except ChannelFull:
                    await asyncio.sleep(0.001)
                else:
                    break
            if number % 8 == 0:
                await asyncio.sleep(dice.uniform(0, 0.002))

    sending = asyncio.create_task(send())
    received: list[int] = []
    cancelled = 0
    async with asyncio.timeout(30):
        while len(received) < count:
            try:
                async with asyncio.timeout(dice.uniform(0, 0.001)):
                    received.append((await layer.receive(channel))["n"])
            except TimeoutError:
                cancelled += 1
                if cancelled % 50 == 0:  # a machine so slow that nothing is ever done in time gets on, too
                    received.append((await layer.receive(channel))["n"])
    await sending
    assert received == list(range(count))
    assert cancelled


async def test_a_receive_that_is_cancelled_passes_its_message_on(layer: ChannelLayer, channel: str) -> None:
    for number in range(30):
        first, second = (asyncio.create_task(layer.receive(channel)) for _ in range(2))
        await asyncio.sleep(0)
        sending = asyncio.create_task(layer.send(channel, {"n": number}))
        await asyncio.sleep(0)
        first.cancel()
        await sending
        await asyncio.wait([first])
        if first.cancelled():
            assert await asyncio.wait_for(second, 10) == {"n": number}
        else:
            assert first.result() == {"n": number}
            second.cancel()
            await asyncio.wait([second])


async def test_three_readers_get_each_message_once(layer: ChannelLayer, channel: str) -> None:
    count = 90
    received: list[int] = []

    async def read() -> None:
        while True:
            received.append((await layer.receive(channel))["n"])

    readers = [asyncio.create_task(read()) for _ in range(3)]
    for number in range(count):
        while True:
            try:
                await layer.send(channel, {"n": number})
            except ChannelFull:
                await asyncio.sleep(0.001)
            else:
                break
    await until(lambda: len(received) >= count)
    assert await asyncio.wait(readers, timeout=0.05) == (set(), set(readers))
    for reader in readers:
        reader.cancel()
    await asyncio.wait(readers)
    assert sorted(received) == list(range(count))


async def test_flush_deletes_messages_and_groups(layer: ChannelLayer) -> None:
    local = await layer.new_channel()
    for channel in ("ordinary", local):
        await layer.send(channel, {"n": 1})
        await layer.group_add("group", channel)
    await layer.send(await layer.new_channel(), {})
    await layer.flush()
    await layer.group_send("group", {"n": 2})
    await layer.send("ordinary", {"n": 3})
    await layer.send(local, {"n": 3})
    assert await layer.receive("ordinary") == {"n": 3}


async def test_a_closed_layer_can_be_used_again(layer: ChannelLayer) -> None:
    await layer.send("a", {"n": 1})
    await layer.close()
    await layer.close()
    await layer.send("a", {"n": 2})
    assert [await layer.receive("a") for _ in range(2)] == [{"n": 1}, {"n": 2}]
    local = await layer.new_channel()
    await layer.send(local, {"n": 3})
    assert await layer.receive(local) == {"n": 3}


def test_what_channels_asks_a_layer_for(new_layer: MakeLayer) -> None:
    layer = new_layer()
    assert (layer.expiry, layer.group_expiry, layer.capacity) == (60, 86400, 100)
    assert set(layer.extensions) >= {"groups", "flush"}
