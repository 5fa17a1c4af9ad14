"""Messages wait for a store that is away, bounded in bytes and in time, in order; one written twice counts once."""

import asyncio
from collections.abc import Callable

import pytest

from asgibus.layers import LayerUnavailable, RedisChannelLayer, settings
from asgibus.layers.codec import pack_message
from asgibus.layers.frames import LOCAL_MESSAGES
from asgibus.layers.names import split_local
from asgibus.layers.redis.redelivery import Backlog
from support.bus import until
from support.redis import RedisServer

pytestmark = pytest.mark.anyio

FAR = 1e9


def seconds_from_now(seconds: float) -> float:
    return asyncio.get_running_loop().time() + seconds


async def test_senders_beyond_the_bound_wait_in_order() -> None:
    backlog = Backlog(10_000)
    rooms = [await backlog.enter(4000, FAR), await backlog.enter(4000, FAR)]
    order: list[int] = []

    async def enter(number: int, size: int) -> int:
        room = await backlog.enter(size, FAR)
        order.append(number)
        return room

    async with asyncio.TaskGroup() as tasks:
        entering = [tasks.create_task(enter(number, size)) for number, size in enumerate([4000, 100, 50_000])]
        await asyncio.sleep(0)
        assert order == [], "the small one waits behind the large one"
        backlog.leave(rooms[0])
        await until(lambda: order == [0, 1])
        for room in (rooms[1], entering[0].result(), entering[1].result()):
            assert order == [0, 1]
            backlog.leave(room)
        await until(lambda: order == [0, 1, 2])
        backlog.leave(entering[2].result())


async def test_a_sender_that_finds_no_room_takes_none() -> None:
    backlog = Backlog(1000)
    room = await backlog.enter(1000, FAR)
    with pytest.raises(LayerUnavailable, match="too much waits for Redis already"):
        await backlog.enter(1, seconds_from_now(0.01))
    waiting = asyncio.create_task(backlog.enter(1, FAR))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])
    backlog.leave(room)
    assert await backlog.enter(1000, seconds_from_now(1)) == 1000


async def test_one_message_may_exceed_the_bound_and_empty_ones_count() -> None:
    backlog = Backlog(100_000)
    backlog.leave(await backlog.enter(10**6, seconds_from_now(1)))
    for _ in range(1000):
        await backlog.enter(0, seconds_from_now(1))
    with pytest.raises(LayerUnavailable):
        await backlog.enter(0, seconds_from_now(0.01))


@pytest.mark.parametrize("channels", [False, True])
async def test_a_send_waits_as_long_as_the_wait_option(channels: bool, start_redis: Callable[..., RedisServer]) -> None:
    server = start_redis()
    patient, hasty = RedisChannelLayer(server.url, wait=60), RedisChannelLayer(server.url, wait=0.2)
    try:
        channel = await patient.new_channel()
        await patient.group_add("group", channel)
        await hasty.group_send("group", {"n": 0})
        assert await patient.receive(channel) == {"n": 0}
        server.kill()
        with pytest.raises(LayerUnavailable):
            await hasty.group_send("group", {"n": 1})
        sending = [
            asyncio.create_task(patient.send(channel, {"n": n}) if channels else patient.group_send("group", {"n": n}))
            for n in range(2, 5)
        ]
        _, waiting = await asyncio.wait(sending, timeout=0.5)
        assert len(waiting) == 3
        await asyncio.to_thread(server.start)
        await asyncio.gather(*sending)
        assert sorted([(await patient.receive(channel))["n"] for _ in range(3)]) == [2, 3, 4]
        assert patient.counts["send failed"] == 0
        assert hasty.counts["send failed"] == 1
    finally:
        await patient.close()
        await hasty.close()


async def test_an_entry_written_twice_is_received_and_counted_once(redis_url: str) -> None:
    layer = RedisChannelLayer(redis_url, capacity=3)
    try:
        channel = await layer.new_channel()
        local = split_local(channel)
        assert local is not None
        mailbox, part = local
        client = await layer._shards.shard_for(mailbox).client()
        entry = client.outbox.pack(mailbox, (LOCAL_MESSAGES, [part], pack_message({"n": 1}), 0.0, 3))
        for _ in range(2):
            await client.pipeline.call("XADD", client.keys.mailbox(mailbox), "*", "b", entry)
        assert await layer.receive(channel) == {"n": 1}
        for n in (2, 3, 4):
            await layer.send(channel, {"n": n})
        assert [(await layer.receive(channel))["n"] for _ in range(3)] == [2, 3, 4]
        assert (await layer.channel_statistics(channel))["messages_pending"] == 0
    finally:
        await layer.close()


def test_the_wait_option_overrides_the_default_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings._Process, "wait", settings.WAIT_SECONDS)
    assert RedisChannelLayer().settings.wait == 5.0
    settings.set_default_wait(60.0)
    assert RedisChannelLayer().settings.wait == 60.0
    assert RedisChannelLayer(wait=1.0).settings.wait == 1.0


async def test_an_event_loop_waits_to_connect_during_an_outage(
    start_redis: Callable[..., RedisServer],
) -> None:
    server = start_redis()
    layer = RedisChannelLayer(server.url)

    async def connect() -> None:
        await layer._shards.home.client(seconds_from_now(60))
        await layer.close()

    await connect()
    server.kill()
    connecting = asyncio.create_task(asyncio.to_thread(asyncio.run, connect()))
    _, waiting = await asyncio.wait([connecting], timeout=0.5)
    assert waiting
    await asyncio.to_thread(server.start)
    await connecting


async def test_a_store_that_was_never_reached_fails_at_once() -> None:
    layer = RedisChannelLayer("redis://127.0.0.1:1", wait=60)
    with pytest.raises(LayerUnavailable, match="refused"):
        await asyncio.wait_for(layer.send("channel", {"n": 1}), 10)
