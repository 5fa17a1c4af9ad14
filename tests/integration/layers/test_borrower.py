"""A mailbox that is lent to the event loop in which its messages are received: see `layers/redis/local/borrower.py`."""

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator
from itertools import count
from typing import Any

import pytest
import redis
from asgiref.sync import async_to_sync

from asgibus.layers import ChannelFull, RedisChannelLayer
from asgibus.layers.redis.local import borrower
from support.bus import until
from support.deadline import wait_until

pytestmark = [pytest.mark.anyio, pytest.mark.redis]


@pytest.fixture(autouse=True)
def lend_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lend the mailbox with the second message, and when the event loop has just begun."""
    monkeypatch.setattr(borrower, "OFTEN_SECONDS", 60.0)
    monkeypatch.setattr(borrower, "ALONE_SECONDS", 0.0)


@pytest.fixture
async def layer(redis_url: str) -> AsyncIterator[RedisChannelLayer]:
    layer = RedisChannelLayer(redis_url, capacity=1000)
    yield layer
    await layer.close()


@pytest.fixture
async def peer(redis_url: str) -> AsyncIterator[RedisChannelLayer]:
    """Provide the layer of another process."""
    peer = RedisChannelLayer(redis_url, capacity=1000)
    yield peer
    await peer.close()


class Messages:
    """Numbered messages to one channel, sent one by one and received in order."""

    def __init__(self, layer: RedisChannelLayer, peer: RedisChannelLayer, channel: str, admin: Any) -> None:
        self._layer = layer
        self._peer = peer
        self.channel = channel
        self._admin = admin
        self._sent = count()
        self._received = count()

    async def send(self) -> None:
        await self._peer.send(self.channel, {"n": next(self._sent)})

    async def receive(self) -> None:
        message = await asyncio.wait_for(self._layer.receive(self.channel), 20)
        assert message == {"n": next(self._received)}

    def reads(self, end: str) -> bool:
        """Return whether a client waits for messages: `receive` is in the event loop, `mailbox` in the background."""
        channels = [each for each in self._admin.client_list() if each["name"].startswith("specific.")]
        return any(each["name"].endswith(f"!{end}") and "b" in each["flags"] for each in channels)

    async def until_lent(self) -> None:
        async with asyncio.timeout(20):
            while not self.reads("receive"):
                await self.send()
                await self.receive()


@pytest.fixture
async def messages(layer: RedisChannelLayer, peer: RedisChannelLayer, admin: "redis.Redis[bytes]") -> Messages:
    return Messages(layer, peer, await layer.new_channel(), admin)


async def test_the_mailbox_is_lent_while_messages_come(messages: Messages) -> None:
    await messages.until_lent()
    for _ in range(100):
        receiving = asyncio.create_task(messages.receive())
        await messages.send()
        await receiving
    await until(lambda: not messages.reads("receive"))
    await until(lambda: messages.reads("mailbox"))
    await messages.send()
    await messages.receive()


async def test_cancelled_receivers_lose_no_message(messages: Messages, layer: RedisChannelLayer) -> None:
    await messages.until_lent()
    received: list[int] = []

    async def read() -> None:
        while len(received) < 300:
            with contextlib.suppress(TimeoutError):
                received.append((await asyncio.wait_for(layer.receive(messages.channel), 0.001))["n"])

    async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
        tasks.create_task(read())
        for number in range(300):
            await messages.send()
            if number % 10 == 0:
                await asyncio.sleep(0.002)
    assert received == list(range(received[0], received[0] + 300))


async def test_a_lost_connection_loses_no_message(messages: Messages, admin: "redis.Redis[bytes]") -> None:
    """Connections for reading are closed at random, of the event loop and of the background loop."""

    def close(every: int) -> None:
        for number, client in enumerate(admin.client_list()):
            if client["name"].endswith(("!receive", "!mailbox")) and (number + every) % 2:
                admin.client_kill_filter(_id=client["id"])

    await messages.until_lent()
    for number in range(400):
        await messages.send()
        if number % 50 == 0:
            await asyncio.to_thread(close, number // 50)
        await messages.receive()


async def test_entries_that_the_event_loop_cannot_handle(
    messages: Messages, layer: RedisChannelLayer, peer: RedisChannelLayer, admin: "redis.Redis[bytes]"
) -> None:
    """Delayed messages, memberships and damaged entries are handled in the background loop."""
    await messages.until_lent()
    (mailbox,) = admin.keys("asgibus:mailbox:specific.*")
    for number in range(30):
        await messages.send()
        if number % 10 == 0:
            admin.xadd(mailbox, {"b": b"damaged"})
            await peer.group_add("group", messages.channel)
            await peer.send(messages.channel, {"n": "delayed"}, delay=0.2)
        await messages.receive()
    for _ in range(3):
        assert await asyncio.wait_for(layer.receive(messages.channel), 20) == {"n": "delayed"}
    assert layer.counts["damaged entry"] == 3
    await peer.group_send("group", {"n": "group"})
    assert await asyncio.wait_for(layer.receive(messages.channel), 20) == {"n": "group"}


async def test_full_channels_are_refused(messages: Messages) -> None:
    await messages.until_lent()
    with pytest.raises(ChannelFull):
        async with asyncio.timeout(20):
            while True:
                await messages.send()


async def test_a_blocked_event_loop_holds_up_no_other(
    messages: Messages, layer: RedisChannelLayer, redis_url: str
) -> None:
    other = await layer.new_channel()
    received: list[Any] = []

    async def receive() -> None:
        received.append(await layer.receive(other))

    async def send() -> None:
        peer = RedisChannelLayer(redis_url)
        await peer.send(other, {})
        await peer.close()

    thread = threading.Thread(target=lambda: asyncio.run(receive()))
    thread.start()
    await asyncio.sleep(0.05)  # until it waits: later the mailbox would be taken back for it
    await messages.until_lent()
    sending = threading.Thread(target=lambda: asyncio.run(send()))
    sending.start()
    try:
        wait_until(lambda: bool(received))  # blocks the event loop
    finally:
        sending.join()
        thread.join()
    await messages.send()
    await messages.receive()


def test_an_event_loop_that_ends_leaves_the_mailbox(redis_url: str, admin: "redis.Redis[bytes]") -> None:
    layer = RedisChannelLayer(redis_url, capacity=1000)
    channel = async_to_sync(layer.new_channel)()

    async def exchange() -> None:
        peer = RedisChannelLayer(redis_url)
        await Messages(layer, peer, channel, admin).until_lent()
        await peer.close()

    for _ in range(2):
        asyncio.run(exchange())
        began = time.monotonic()
        async_to_sync(layer.send)(channel, {"n": "after"})
        assert async_to_sync(layer.receive)(channel) == {"n": "after"}
        assert time.monotonic() - began < 10
    async_to_sync(layer.close)()
