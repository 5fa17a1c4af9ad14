"""Readers of ordinary channels: expired messages, cancelled readers, and delayed messages.

Tests of all of these together are in `test_redis_readers.py` and in the checks for all layers.
"""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

import pytest
import redis

from asgibus.layers import LayerUnavailable, RedisChannelLayer
from asgibus.layers.codec import pack
from asgibus.layers.redis import pipeline
from asgibus.layers.redis.client import BLOCK_SECONDS
from asgibus.layers.redis.ordinary import reader as reader_module
from asgibus.layers.redis.ordinary.reader import RETRY_SECONDS
from support.bus import Recorder, until
from support.deadline import HANG, in_time
from support.redis import RedisServer

pytestmark = [pytest.mark.anyio, pytest.mark.redis]

KEY = "asgibus:channel:c"
DELAYED = f"asgibus:delayed:{{{KEY}}}"
EXPIRY = 30.0
MESSAGES = 600
Make = Callable[..., RedisChannelLayer]


@pytest.fixture
async def make(redis_url: str) -> AsyncIterator[Make]:
    layers_made: list[RedisChannelLayer] = []

    def make(**options: Any) -> RedisChannelLayer:
        layers_made.append(RedisChannelLayer(redis_url, **{"expiry": EXPIRY, **options}))
        return layers_made[-1]

    yield make
    for layer in layers_made:
        await layer.close()


@pytest.fixture
def long_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lengthen the waits of readers, so that only the marker can wake them during a test."""
    monkeypatch.setattr(reader_module, "BLOCK_SECONDS", 4)


async def wait_until_blocked(admin: "redis.Redis[bytes]", waits: int = 1) -> None:
    await until(lambda: admin.info("clients")["blocked_clients"] == waits)


async def start_readers(admin: "redis.Redis[bytes]", *layers: RedisChannelLayer) -> list[asyncio.Task[Any]]:
    """Start a reader for each argument; each layer blocks in Redis once for all of its readers."""
    tasks = []
    for number, layer in enumerate(layers):
        tasks.append(asyncio.create_task(layer.receive("c")))
        await asyncio.sleep(0)
        await wait_until_blocked(admin, len(set(layers[: number + 1])))
    return tasks


@contextmanager
def paused(admin: "redis.Redis[bytes]") -> Iterator[None]:
    """Pause Redis: it reads commands that write, and executes them later."""
    admin.client_pause(60_000, all=False)
    try:
        yield
    finally:
        admin.client_unpause()


async def wait_until_taking(admin: "redis.Redis[bytes]", *readers: "asyncio.Task[Any]") -> None:
    """Wait until so many readers are taking, while Redis is paused."""
    await until(lambda: admin.info("clients")["blocked_clients"] == len(readers))


def blocked_takes(admin: "redis.Redis[bytes]") -> int:
    """Return how many readers wait, or are taking while Redis is paused."""
    clients = [client for client in admin.client_list() if client["name"].startswith("asgibus-receive")]
    return sum("b" in client["flags"] for client in clients)


async def result_of(result: Awaitable[Any]) -> Any:
    return await asyncio.wait_for(result, 30)


def item(number: object, age: float = 0.0) -> bytes:
    """Return a message as it is stored in Redis, sent `age` seconds ago."""
    return b"%d:1:%b" % ((time.time() - age) * 1000, pack({"n": number}))


def delay(admin: "redis.Redis[bytes]", number: object, seconds: float) -> None:
    """Store a delayed message as `send` does, but synchronously, so that the event loop does not run."""
    admin.zadd(DELAYED, {b"x:1:" + pack({"n": number}): time.time() * 1000 + seconds * 1000})
    admin.pexpire(DELAYED, 60_000)
    admin.lpush(KEY, b"")


async def cancel(*tasks: "asyncio.Task[Any]") -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


async def connect(layer: RedisChannelLayer, channel: str = "c") -> None:
    """Let the layer connect and note, for a moment, that the channel is empty."""
    for number in range(2):
        await layer.send(channel, {"n": number})
        assert await layer.receive(channel) == {"n": number}


# Expired messages.


async def test_expired_messages_are_not_received(make: Make, admin: "redis.Redis[bytes]") -> None:
    (reader,) = await start_readers(admin, make())
    admin.rpush(KEY, *(item("old", EXPIRY + 1) for _ in range(50)), item("young", EXPIRY - 5))
    assert await result_of(reader) == {"n": "young"}
    assert not admin.exists(KEY)


@pytest.mark.parametrize("ahead", [3600, 1])
async def test_messages_are_received_after_a_clock_step_back(
    make: Make, admin: "redis.Redis[bytes]", ahead: int
) -> None:
    """Messages that were sent before the clock of Redis went back are received."""
    layer = make()
    await connect(layer)
    for number in range(3):
        (reader,) = await start_readers(admin, layer)
        admin.rpush(KEY, item(number, -ahead))
        assert await result_of(reader) == {"n": number}


async def test_a_message_that_only_seems_to_have_expired_is_received(
    make: Make, admin: "redis.Redis[bytes]", caplog: pytest.LogCaptureFixture
) -> None:
    """The clock of Redis is put back after a reader has looked at it, before a message is sent."""
    layer = make()
    await connect(layer)
    (reader,) = await start_readers(admin, layer)
    (await layer._shards.shard_for("c").client()).reader._clock_offset += 3600
    for number in range(3):
        admin.rpush(KEY, item(number))
    assert [(await result_of(each))["n"] for each in (reader, layer.receive("c"), layer.receive("c"))] == [0, 1, 2]
    assert not caplog.records


# Cancelled readers.


@pytest.mark.parametrize("turns", range(6))
async def test_a_message_for_a_cancelled_reader_stays_first(
    make: Make, admin: "redis.Redis[bytes]", turns: int
) -> None:
    """A message that arrives as its reader gives up is the first for the next reader."""
    layer = make()
    (reader,) = await start_readers(admin, layer)
    admin.rpush(KEY, item(1), item(2))
    for _ in range(turns):
        await asyncio.sleep(0)
    await cancel(reader)
    first = {"n": 1}
    assert (await result_of(layer.receive("c")) if reader.cancelled() else reader.result()) == first
    assert await result_of(layer.receive("c")) == {"n": 2}


async def test_a_cancelled_reader_holds_no_later_message(
    make: Make, admin: "redis.Redis[bytes]", long_waits: None
) -> None:
    """A message that is sent after a reader gave up reaches another process at once."""
    layer, other = make(), make()
    (reader,) = await start_readers(admin, layer)
    await cancel(reader)
    assert admin.info("clients")["blocked_clients"] == 0
    await other.send("c", {"n": 1})
    assert await asyncio.wait_for(other.receive("c"), 3) == {"n": 1}


@pytest.mark.parametrize("next_reader", ["a reader that waits", "the next reader", "another process", "after a close"])
async def test_a_message_taken_by_a_cancelled_reader_is_put_back(
    make: Make, admin: "redis.Redis[bytes]", next_reader: str
) -> None:
    """A message whose reader gives up returns to the head of the channel, before wake-up items, with its age."""
    layer, other = make(), make()
    await connect(layer, "another")
    admin.rpush(KEY, item(1, 5), item(2), item(3))
    delay(admin, "late", 60)
    with paused(admin):
        reader = asyncio.create_task(layer.receive("c"))
        await wait_until_taking(admin, reader)
        second = asyncio.create_task(layer.receive("c")) if next_reader == "a reader that waits" else None
        await asyncio.sleep(0)
        await cancel(reader)
    assert reader.cancelled()
    if second is not None:
        assert await result_of(second) == {"n": 1}
    elif next_reader == "the next reader":
        assert await result_of(layer.receive("c")) == {"n": 1}
    else:
        if next_reader == "after a close":
            await layer.close()
        else:
            await until(lambda: b"1:" + pack({"n": 1}) in (admin.lindex(KEY, 0) or b""))
        assert (await other.channel_statistics("c"))["messages_max_age"] >= 5
        assert await result_of(other.receive("c")) == {"n": 1}
    assert [(await result_of(other.receive("c")))["n"] for _ in range(2)] == [2, 3]
    assert (await other.channel_statistics("c"))["messages_pending"] == 1


async def test_a_message_is_put_back_into_a_full_redis(make: Make, admin: "redis.Redis[bytes]") -> None:
    """A message is put back into a full Redis, and the next reader, which may be the one to free memory, gets it."""
    layer = make()
    await connect(layer, "another")
    admin.rpush(KEY, item(1), item(2))
    try:
        with paused(admin):
            reader = asyncio.create_task(layer.receive("c"))
            await wait_until_taking(admin, reader)
            await cancel(reader)
            admin.config_set("maxmemory", 1)
        assert [(await asyncio.wait_for(layer.receive("c"), 5))["n"] for _ in range(2)] == [1, 2]
        with pytest.raises(redis.ResponseError, match="maxmemory"):
            admin.rpush(KEY, item(3))
    finally:
        admin.config_set("maxmemory", 0)


async def test_readers_wait_while_redis_is_full(make: Make, admin: "redis.Redis[bytes]") -> None:
    """Readers wait, on the same connections, while a full Redis rejects the blocking command."""
    layer = make()
    await connect(layer)
    refused = admin.info("errorstats").get("errorstat_OOM", {"count": 0})["count"]
    try:
        admin.config_set("maxmemory", 1)
        reader = asyncio.create_task(layer.receive("c"))
        await until(lambda: admin.info("errorstats").get("errorstat_OOM", {"count": 0})["count"] > refused)
        connections = admin.info("stats")["total_connections_received"]
        await asyncio.wait({reader}, timeout=2 * RETRY_SECONDS)
        assert not reader.done()
        assert admin.info("stats")["total_connections_received"] == connections
    finally:
        admin.config_set("maxmemory", 0)
    await layer.send("c", {"n": 1})
    assert await result_of(reader) == {"n": 1}


async def test_two_cancelled_calls_put_their_messages_back(make: Make, admin: "redis.Redis[bytes]") -> None:
    """The next reader gets both messages when both cancelled calls have put theirs back."""
    layer = make()
    await connect(layer, "another")
    async with layer.bus("worker", Recorder()) as bus:
        admin.rpush(KEY, item(1), item(2))
        with paused(admin):
            reader = asyncio.create_task(layer.receive("c"))
            await until(lambda: blocked_takes(admin) == 1)
            taker = asyncio.create_task(bus.take("c", 1, once=True))
            await until(lambda: blocked_takes(admin) == 2)
            await cancel(reader)
            following = asyncio.create_task(layer.receive("c"))
            for _ in range(5):  # until the reader waits
                await asyncio.sleep(0)
            await cancel(taker)
        messages = [await result_of(following), await result_of(layer.receive("c"))]
    assert sorted(message["n"] for message in messages) == [1, 2]


async def test_a_cancelled_read_keeps_the_connection(make: Make, admin: "redis.Redis[bytes]") -> None:
    layer = make()
    await cancel(*await start_readers(admin, layer))
    connections = admin.info("stats")["total_connections_received"]
    for _ in range(5):
        await cancel(*await start_readers(admin, layer))
    assert admin.info("stats")["total_connections_received"] == connections


async def test_closing_a_layer_ends_its_readers(make: Make, admin: "redis.Redis[bytes]") -> None:
    layer = make()
    readers = await start_readers(admin, layer, layer)
    await layer.close()
    for reader in readers:
        with pytest.raises(LayerUnavailable, match="closed"):
            await result_of(reader)
    await layer.send("c", {"n": 1})
    assert await result_of(layer.receive("c")) == {"n": 1}


async def test_a_close_counts_messages_that_may_be_lost(
    start_redis: Callable[..., RedisServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A close waits a moment for the replies to readers. Redis may have given them messages."""
    monkeypatch.setattr(reader_module, "SETTLE_SECONDS", 0.1)
    monkeypatch.setattr(pipeline, "DRAIN_SECONDS", 0.1)
    server = start_redis()
    layer = RedisChannelLayer(server.url)
    await connect(layer)
    async with layer.bus("worker", Recorder()) as bus:
        server.pause()
        calls = [asyncio.create_task(layer.receive("c")), asyncio.create_task(bus.take("c", 3, once=True))]
        for _ in range(5):  # until both have written their commands
            await asyncio.sleep(0)
        await layer.close()
        server.resume()
        await cancel(*calls)
    assert layer.counts["message lost"] == 4


async def test_readers_cancelled_at_random_lose_no_message(
    make: Make, admin: "redis.Redis[bytes]", monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each message is received once, also when layers are closed meanwhile."""
    # A close, and a cancelled call, wait only so long for a reply that may hold a message. A busy machine may be later.
    monkeypatch.setattr(reader_module, "SETTLE_SECONDS", HANG)
    monkeypatch.setattr(pipeline, "DRAIN_SECONDS", HANG)
    dice = random.Random(11)
    sender = make(capacity=MESSAGES)
    layers = [make() for _ in range(3)]
    received: list[int] = []

    async def read(place: int) -> None:
        while True:
            try:
                async with asyncio.timeout(dice.choice([0.0003, 0.001, 0.005, 0.02])):
                    received.append((await layers[place].receive("c"))["n"])
            except TimeoutError:
                if dice.random() < 0.02:
                    await layers[place].close()
            except LayerUnavailable:  # the other reader has closed the layer
                pass

    readers = [asyncio.create_task(read(number % 3)) for number in range(6)]
    for number in range(MESSAGES):
        await sender.send("c", {"n": number}, delay=dice.choice([0, 0, 0, 0, 0.01, 0.1]))
        if number % 10 == 0:
            await asyncio.sleep(dice.uniform(0, 0.01))  # the rate
    await cancel(*readers)
    for layer in layers:
        await layer.close()  # messages of cancelled readers are put back
    while len(received) < MESSAGES:
        received.append((await asyncio.wait_for(sender.receive("c"), 30))["n"])
    await sender.close()
    await until(lambda: not [each for each in admin.client_list() if each["name"] == "asgibus-receive"])
    assert sorted(received) == list(range(MESSAGES))


def test_a_cancelled_reader_loses_no_message_when_its_event_loop_ends(
    redis_url: str, admin: "redis.Redis[bytes]", monkeypatch: pytest.MonkeyPatch
) -> None:
    """Programs that wait for a moment in one event loop after another receive each message once."""

    async def receive() -> list[int]:
        async with asyncio.timeout(dice.choice([0.004, 0.008, 0.2])):
            return [(await layer.receive("c"))["n"]]

    def send() -> None:
        for number in range(200):
            time.sleep(dice.uniform(0, 0.006))
            admin.rpush(KEY, item(number))

    monkeypatch.setattr(reader_module, "SETTLE_SECONDS", HANG)  # a busy machine may be later
    layer, dice = RedisChannelLayer(redis_url, expiry=600), random.Random(5)
    received: list[int] = []
    with ThreadPoolExecutor(1) as other:
        sending = other.submit(send)
        while not sending.done() or admin.exists(KEY):
            with suppress(TimeoutError):
                received += asyncio.run(receive())
    assert received == list(range(200))


# Delayed messages and their readers.


async def test_delayed_messages_reach_blocked_readers(
    make: Make, admin: "redis.Redis[bytes]", long_waits: None
) -> None:
    sender, layers = make(), [make() for _ in range(3)]
    readers = await start_readers(admin, *layers)
    began = time.monotonic()
    for number in (3, 1, 2):
        await sender.send("c", {"n": number}, delay=number * 0.2)
    for number in (1, 2, 3):
        done, rest = await asyncio.wait(readers, timeout=HANG, return_when=asyncio.FIRST_COMPLETED)
        (reader,) = done
        assert reader.result() == {"n": number}
        assert 0.19 * number <= time.monotonic() - began
        in_time(time.monotonic() - began, 0.2 * number + 1)
        readers = list(rest)


@pytest.mark.parametrize("how", ["gives up", "has a message", "gives up while it looks"])
async def test_another_reader_waits_for_the_delayed_message(
    make: Make, admin: "redis.Redis[bytes]", long_waits: None, how: str
) -> None:
    sender, one, two = make(), make(), make()
    first, second = await start_readers(admin, one, two)
    began = time.monotonic()
    await sender.send("c", {"n": "late"}, delay=0.5)
    if how != "gives up while it looks":
        await until(lambda: not admin.exists(KEY))  # both know when the message is due
    if how == "has a message":
        await cancel(second)  # so that the first reader gets the message
        await sender.send("c", {"n": "now"})
        assert await result_of(first) == {"n": "now"}
        second = asyncio.create_task(two.receive("c"))
    else:
        await cancel(first)
    assert await result_of(second) == {"n": "late"}
    assert time.monotonic() - began >= 0.49
    in_time(time.monotonic() - began, 1.5)


async def test_consumers_receive_delayed_messages(make: Make, admin: "redis.Redis[bytes]", long_waits: None) -> None:
    """Two consumers and a reader share a channel: when one of them ends, the others still get delayed messages."""
    layers = [make() for _ in range(4)]
    received: list[int] = []

    async def take(bus: Any) -> None:
        while deliveries := await bus.take("c", 2):
            for delivery in deliveries:
                received.append(delivery.message["n"])
                bus.acknowledge(delivery)

    async def read() -> None:
        while True:
            received.append((await layers[2].receive("c"))["n"])

    async with layers[0].bus("w", Recorder()) as one, layers[1].bus("w", Recorder()) as two:
        takers = [asyncio.create_task(take(bus)) for bus in (one, two)]
        reader = asyncio.create_task(read())
        for number in range(4):
            began = time.monotonic()
            await layers[3].send("c", {"n": number}, delay=0.3)
            if number == 1:
                await cancel(reader)
            if number == 2:
                one.stop_claiming()
            await until(lambda count=number + 1: len(received) == count)  # type: ignore[misc]
            assert time.monotonic() - began >= 0.29
            in_time(time.monotonic() - began, 1.5)
        assert received == list(range(4))
        two.stop_claiming()
        await result_of(asyncio.gather(*takers))


async def test_a_reader_replaces_a_consumer_that_stops(make: Make, admin: "redis.Redis[bytes]") -> None:
    """A delayed message arrives late by at most BLOCK_SECONDS, since the reader did not know when it was due."""
    reading, taking = make(), make()
    await connect(reading)
    began = time.monotonic()
    await reading.send("c", {"n": "late"}, delay=0.7)
    async with taking.bus("w", Recorder()) as bus:
        taker = asyncio.create_task(bus.take("c", 1))
        await until(lambda: not admin.exists(KEY))  # the consumer knows when the message is due
        reader = asyncio.create_task(reading.receive("c"))
        await asyncio.sleep(0.05)  # a moment to block in, which does not show among the other blocked commands
        bus.stop_claiming()
        assert await result_of(taker) == []
        assert await result_of(reader) == {"n": "late"}
    assert time.monotonic() - began >= 0.69
    in_time(time.monotonic() - began, BLOCK_SECONDS + 2)


async def test_a_reader_that_gets_a_message_wakes_another(
    make: Make, admin: "redis.Redis[bytes]", long_waits: None
) -> None:
    first, second = make(), make()
    for layer in (first, second):
        await connect(layer)
    (reader,) = await start_readers(admin, first)
    began = time.monotonic()
    admin.rpush(KEY, item("now"))
    delay(admin, "late", 0.7)
    assert await result_of(reader) == {"n": "now"}
    assert await result_of(second.receive("c")) == {"n": "late"}
    assert time.monotonic() - began >= 0.69
    in_time(time.monotonic() - began, 2)


async def test_an_interrupted_wait_continues_for_the_remaining_time(
    make: Make, admin: "redis.Redis[bytes]", long_waits: None
) -> None:
    (reader,) = await start_readers(admin, make())
    began = time.monotonic()
    delay(admin, "late", 1.0)
    await asyncio.sleep(0.8)  # most of that
    for client in admin.client_list():
        if client["name"] == "asgibus-receive":
            admin.client_unblock(int(client["id"]))
    assert await result_of(reader) == {"n": "late"}
    assert time.monotonic() - began >= 0.99
    in_time(time.monotonic() - began, 1.6)


async def test_readers_find_due_messages_without_a_wake_up(make: Make, admin: "redis.Redis[bytes]") -> None:
    """A reader finds a delayed message without a wake-up."""
    (reader,) = await start_readers(admin, make())
    admin.zadd(DELAYED, {b"x:1:" + pack({"n": 1}): time.time() * 1000 + 100})
    assert await asyncio.wait_for(reader, BLOCK_SECONDS + 2) == {"n": 1}
