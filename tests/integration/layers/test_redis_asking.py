"""Senders that find a process-local channel full, and ask its process what was received there."""

import asyncio
from typing import Any

import pytest
import redis

from asgibus.layers import ChannelFull, LayerUnavailable, RedisChannelLayer
from support.bus import until

pytestmark = [pytest.mark.anyio, pytest.mark.redis]

SENDERS = 50


async def test_however_many_are_refused_few_ask(redis_url: str) -> None:
    layer, sender = RedisChannelLayer(redis_url, capacity=2), RedisChannelLayer(redis_url, capacity=2)
    channel = await layer.new_channel()
    for number in range(2):
        await sender.send(channel, {"n": number})
    outcomes = await asyncio.gather(*(sender.send(channel, {}) for _ in range(SENDERS)), return_exceptions=True)
    assert [outcome for outcome in outcomes if not isinstance(outcome, ChannelFull)] == []
    assert (await sender.channel_statistics(channel))["channel_full_count"] == SENDERS
    mailbox = channel.partition("!")[0] + "!"
    with redis.Redis.from_url(redis_url, protocol=2) as admin:
        written = admin.xinfo_stream(f"asgibus:mailbox:{mailbox}")["entries-added"]
    assert 2 < written <= 2 + 4 + 1 + 1  # the messages, the asks of senders, that for the statistics; how it was made
    for each in (sender, layer):
        await each.close()


async def test_what_is_received_is_said_without_a_sender_that_asks(redis_url: str) -> None:
    layer = RedisChannelLayer(redis_url)
    channel = await layer.new_channel()
    mailbox, _, part = channel.partition("!")
    with redis.Redis.from_url(redis_url, protocol=2) as admin:
        for number in range(3):
            await layer.send(channel, {"n": number})
        unread = f"asgibus:unread:{{asgibus:mailbox:{mailbox}!}}"
        assert admin.hget(unread, part) == b"3"
        await layer.receive(channel)
        await layer.receive(channel)
        await until(lambda: admin.hget(unread, part) == b"1")
        await layer.receive(channel)
        await until(lambda: not admin.hexists(unread, part))
    await layer.close()


async def test_an_answer_that_cannot_be_read_is_none(redis_url: str, caplog: pytest.LogCaptureFixture) -> None:
    owner = RedisChannelLayer(redis_url, capacity=1, symmetric_encryption_keys=["new", "old"])
    sender = RedisChannelLayer(redis_url, capacity=1, symmetric_encryption_keys=["old"])
    channel = await owner.new_channel()
    await sender.send(channel, {})
    with pytest.raises(LayerUnavailable, match="stands cannot be read"):
        await sender.channel_statistics(channel)
    with pytest.raises(ChannelFull):
        await sender.send(channel, {})
    assert caplog.text.count("give this process that encryption key") == 1
    for each in (owner, sender):
        await each.close()


async def test_what_cannot_be_read_does_not_fill_a_channel_for_good(redis_url: str) -> None:
    """A sender with another encryption key does no harm to the others."""
    good: dict[str, Any] = {"capacity": 3, "symmetric_encryption_keys": ["right"]}
    owner, sender = RedisChannelLayer(redis_url, **good), RedisChannelLayer(redis_url, **good)
    foreign = RedisChannelLayer(redis_url, capacity=3, symmetric_encryption_keys=["wrong"])
    channel, other = await owner.new_channel(), await owner.new_channel()
    await sender.send(other, {"n": 1})
    await sender.send(other, {"n": 2}, delay=0.5)
    for _ in range(3):
        await foreign.send(channel, {})
    with redis.Redis.from_url(redis_url, protocol=2) as admin:
        mailbox = channel.partition("!")[0] + "!"
        unread = f"asgibus:unread:{{asgibus:mailbox:{mailbox}}}"
        local, part = (each.partition("!")[2].encode() for each in (channel, other))
        await until(lambda: admin.hgetall(unread) == {b"!": b"1", part: b"2"})
        for number in range(3):
            await sender.send(channel, {"n": number})
        with pytest.raises(ChannelFull):
            await sender.send(channel, {})
        assert admin.hget(unread, local) == b"3"
    assert [(await owner.receive(channel))["n"] for _ in range(3)] == [0, 1, 2]
    assert [(await owner.receive(other))["n"] for _ in range(2)] == [1, 2]
    for each in (owner, sender, foreign):
        await each.close()
