"""Streams in Redis: deaths of writers, keys that are lost, damaged or encrypted, and short-lived event loops."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

import pytest
import redis

from asgibus.layers import LayerUnavailable, RedisChannelLayer
from asgibus.layers.codec import pack
from asgibus.layers.errors import StreamError, StreamReset, WriterFenced
from asgibus.layers.names import split_local
from asgibus.layers.redis import bus as bus_module
from asgibus.layers.redis.streams import store as store_module
from asgibus.layers.streams import Page, StreamLimits, StreamState
from asgibus.layers.streams.redelivery import Redelivery, redelivery
from support.bus import Recorder, until
from support.deadline import in_time
from support.redis import RedisServer

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("regroup")]

BATCHES = "asgibus:stream:a"
FIELDS = ("epoch", "term", "first", "last", "bytes", "fails", "kept", "state", "writer", "cancelled", "grace")
STATE = "asgibus:stream-state:{asgibus:stream:a}"


@pytest.fixture
async def layer(redis_url: str) -> AsyncIterator[RedisChannelLayer]:
    layer = RedisChannelLayer(redis_url)
    yield layer
    await layer.close()


@pytest.fixture
async def other(redis_url: str) -> AsyncIterator[RedisChannelLayer]:
    layer = RedisChannelLayer(redis_url)
    yield layer
    await layer.close()


def items(page: Page) -> list[Any]:
    return [item for _, item in page.items]


async def read(layer: RedisChannelLayer, found: list[Any]) -> None:
    async for _, item in layer.stream("a").read():
        found.append(item)


async def test_a_death_that_a_supervisor_reports_ends_streams_at_once(
    layer: RedisChannelLayer, other: RedisChannelLayer, admin: "redis.Redis[bytes]"
) -> None:
    found: list[Any] = []
    reader = asyncio.create_task(read(other, found))
    async with layer.bus("worker", Recorder()) as bus, other.bus("interface", Recorder()):
        with pytest.raises(WriterFenced, match="not open any more"):
            async with layer.stream("a").writer() as out:
                await out.append(1)
                await out.flush()
                assert len(admin.keys("asgibus:writing:*")) == 3, "of its channels, and of the servers here"
                declared = asyncio.get_running_loop().time()
                await other.declare_dead(bus.mailbox)
                with pytest.raises(StreamError, match="the writer is gone"):
                    await asyncio.wait_for(reader, 10)
                in_time(asyncio.get_running_loop().time() - declared, 0.5)
                await out.append(2)
                await out.flush()
    assert found == [1]
    assert layer.counts["stream orphan"] + other.counts["stream orphan"] == 1
    assert admin.keys("asgibus:writing:*") == []


async def test_followers_learn_of_a_death_although_they_could_not_be_told_at_once(
    layer: RedisChannelLayer, other: RedisChannelLayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bus_module, "RETRY_SECONDS", 0.05)
    found: list[Any] = []
    reader = asyncio.create_task(read(other, found))
    writer = layer.stream("a").writer()
    await writer.__aenter__()
    await writer.append(1)
    await until(lambda: found == [1])
    messages, away = other._streams.messages, 2
    tell = messages.tell

    async def tell_later(broadcast: Any) -> None:
        nonlocal away
        away -= 1
        if away >= 0:
            raise LayerUnavailable("away")
        await tell(broadcast)

    monkeypatch.setattr(messages, "tell", tell_later)
    async with other.bus("interface", Recorder()) as bus:
        mailbox = split_local(writer._identity.channel)
        assert mailbox is not None
        bus.died(mailbox[0])
        with pytest.raises(StreamError, match="the writer is gone"):
            await asyncio.wait_for(reader, 5)
    with pytest.raises(WriterFenced):
        await writer.__aexit__(None, None, None)


async def test_streams_end_while_another_store_is_away(start_redis: Callable[..., RedisServer]) -> None:
    hosts = [start_redis() for _ in range(2)]
    layer = RedisChannelLayer([each.url for each in hosts], wait=0.5)
    names: dict[str, str] = {}
    for number in range(100):
        names[str(layer._shards.shard_for(f"s.{number}").address)] = f"s.{number}"
    mailbox = "dead.p0123456789abcdef!"
    for host, name in names.items():
        with redis.Redis.from_url(host) as admin:
            state = {"epoch": 9, "term": 1, "first": 1, "last": 0, "bytes": 0, "state": "open", "error": ""}
            state |= {"writer": f"{mailbox}1", "cancelled": 0, "fails": 9 * 10**15, "grace": 0, "kept": 10_000}
            admin.hset(f"asgibus:stream-state:{{asgibus:stream:{name}}}", mapping=state)  # type: ignore[arg-type]
            admin.sadd(f"asgibus:writing:{mailbox}", f"{name} {mailbox}1")
    await asyncio.to_thread(hosts[0].kill)
    with pytest.raises(LayerUnavailable):
        await layer._streams.end_streams_of(mailbox)
    info = await layer.stream(names[hosts[1].url]).info()
    assert (info.state, info.error) == (StreamState.FAILED, "the writer is gone")
    await layer.close()


async def test_a_writer_whose_death_nobody_notices_gives_more_signs_of_life(
    start_redis: Callable[..., RedisServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "UNWATCHED_SECONDS", 1.0)
    hosts = [start_redis().url for _ in range(2)]
    layer, other = RedisChannelLayer(hosts), RedisChannelLayer(hosts)
    writer = layer.stream("a").writer()
    await writer.__aenter__()
    reader = asyncio.create_task(read(other, []))
    await writer.append(1)
    await asyncio.sleep(1.5)  # longer than a stream without a sign of life stays open
    assert (await other.stream("a").info()).state is StreamState.OPEN
    for task in writer._tasks:
        task.cancel()  # as if the process had died
    with pytest.raises(StreamError, match="the writer is gone"):
        await asyncio.wait_for(reader, 5)
    async with layer.bus("worker", Recorder()), layer.stream("b").writer():
        left = (await other.stream("b").info()).left
        assert left is not None
        assert left > 50, "servers watch the store of this one"
    for each in (layer, other):
        await each.close()


async def test_a_writer_that_was_fenced_leaves_the_time_of_the_stream(
    layer: RedisChannelLayer, admin: "redis.Redis[bytes]"
) -> None:
    brief = layer.stream("a").writer(ttl=1)
    await brief.__aenter__()
    async with layer.stream("a").writer() as out:
        await out.append(1)
    with pytest.raises(WriterFenced):
        await layer._streams.finish("a", brief._identity, 0, StreamState.ENDED)
    with pytest.raises(WriterFenced):
        await brief.__aexit__(None, None, None)
    assert admin.pttl(STATE) > 3_000_000


async def test_the_stream_of_a_dead_job_stays_open_for_the_next_one(
    layer: RedisChannelLayer, other: RedisChannelLayer
) -> None:
    redelivery.set(Redelivery(lambda: 30.0))
    stream = other.stream("a")
    async with layer.bus("worker", Recorder()) as bus, other.bus("interface", Recorder()):
        with pytest.raises(WriterFenced):
            async with layer.stream("a").writer() as out:
                await out.append(1)
                await out.flush()
                await other.declare_dead(bus.mailbox)
                await until(lambda: layer.counts["stream orphan"] + other.counts["stream orphan"] > 0)
                page = await stream.page()
                assert (page.state, page.error) == (StreamState.OPEN, "")
                assert page.left is not None
                assert 25 < page.left <= 30
                async with stream.writer(restart=True) as again:
                    await again.append(2)
                await out.append(3)
                await out.flush()
        page = await stream.page(page.last)
    assert (page.state, page.reset, items(page)) == (StreamState.ENDED, True, [2])


async def test_a_server_that_stops_ends_no_streams(layer: RedisChannelLayer, other: RedisChannelLayer) -> None:
    async with other.bus("interface", Recorder()), layer.stream("a").writer() as out:
        async with layer.bus("worker", Recorder()):
            async with layer.stream("b").writer():
                pass
            await out.append(1)
        async with other.bus("worker", Recorder()):
            await out.append(2)
            await out.flush()
        assert (await layer.stream("a").info()).state is StreamState.OPEN
    assert items(await layer.stream("a").page()) == [1, 2]


async def test_writers_begin_again_at_once_when_redis_has_lost_its_data(
    layer: RedisChannelLayer, other: RedisChannelLayer, admin: "redis.Redis[bytes]"
) -> None:
    stream = other.stream("a")
    async with layer.stream("a").writer() as out:
        offsets = [await out.append(number) for number in range(3)]
        await out.flush()
        admin.flushall()
        await until(lambda: admin.exists(STATE))
        page = await stream.page(offsets[2])
        assert (page.state, page.reset, page.items) == (StreamState.OPEN, False, [])
        await until(lambda: admin.keys("asgibus:writing:*"))
        await out.append(3)
    page = await stream.page()
    assert (page.state, page.reset, items(page)) == (StreamState.ENDED, False, [0, 1, 2, 3])


async def test_a_stream_that_is_lost_before_its_end_is_stored_again(
    layer: RedisChannelLayer, admin: "redis.Redis[bytes]"
) -> None:
    stream = layer.stream("a")
    async with stream.writer() as out:
        await out.append(1)
        await out.flush()
        admin.flushall()
    page = await stream.page()
    assert (page.state, page.reset, items(page)) == (StreamState.ENDED, False, [1])


async def test_a_stream_waits_no_longer_for_a_message_that_was_handled(layer: RedisChannelLayer) -> None:
    stream, message = layer.stream("a"), Redelivery(lambda: 30.0)
    redelivery.set(message)
    for begins in (False, True):
        with suppress(ArithmeticError):
            async with stream.writer():
                raise ArithmeticError
        assert (await stream.info()).state is StreamState.OPEN
        if not begins:
            await message.fail()
            assert ((await stream.info()).state, (await stream.info()).error) == (StreamState.FAILED, "ArithmeticError")
    async with stream.writer(restart=True):
        await message.fail()
        assert (await stream.info()).state is StreamState.OPEN
    assert (await stream.info()).state is StreamState.ENDED


async def test_limits_hold_when_redis_has_evicted_batches(
    layer: RedisChannelLayer, admin: "redis.Redis[bytes]"
) -> None:
    limits = StreamLimits(bytes=5000)
    async with layer.stream("a", limits).writer() as out:
        for number in range(12):
            if number == 5:
                admin.delete(BATCHES)
            await out.append([number, b"x" * 900])
            await out.flush()
    page = await layer.stream("a").page()
    assert [item[0] for item in items(page)] == [7, 8, 9, 10, 11]
    assert page.bytes <= 5000


async def test_kept_messages_that_redis_has_evicted_count_no_more(
    layer: RedisChannelLayer, admin: "redis.Redis[bytes]"
) -> None:
    past, limits = layer.group_past("room"), StreamLimits(100, 5000, 60.0)
    for number in range(12):
        if number == 5:
            admin.delete("asgibus:stream:group:room")
        await layer._streams.keep(past.name, pack([{"n": number, "x": b"x" * 900}]), limits, f"id.{number}")
    page = await past.page()
    assert [item["n"] for item in items(page)] == [7, 8, 9, 10, 11]
    assert page.bytes <= 5000


async def test_members_learn_that_redis_has_lost_the_last_kept_messages(
    layer: RedisChannelLayer, admin: "redis.Redis[bytes]"
) -> None:
    past = layer.group_past("room")
    for text in "ab":
        await layer.group_send("room", {"type": "x", "text": text}, keep=10)
    copies = {key: admin.dump(key) for key in admin.keys("asgibus:stream*")}
    for text in "cd":
        await layer.group_send("room", {"type": "x", "text": text}, keep=10)
    known = (await past.page()).last
    reader = asyncio.create_task(anext(past.read(known)))
    await until(lambda: layer.gauges()["stream readers"] == 1)
    for key, copy in copies.items():
        admin.restore(key, 60_000, copy, replace=True)
    await layer.group_send("room", {"type": "x", "text": "e"}, keep=10)
    page = await past.page(known)
    assert page.reset, "a later message would get the number of a lost one"
    assert [item["text"] for item in items(page)] == ["a", "b", "e"]
    with pytest.raises(StreamReset):
        await asyncio.wait_for(reader, 5)


async def test_what_a_writer_has_no_more_is_said_to_be_lost(
    layer: RedisChannelLayer, admin: "redis.Redis[bytes]"
) -> None:
    stream = layer.stream("a")
    async with stream.writer() as out:
        for number in range(10):
            await out.append([number, b"x" * 8000])
            await out.flush()
        admin.flushall()
        await out.append([10, b""])
    page = await stream.page()
    assert (page.reset, [item[0] for item in items(page)]) == (True, [6, 7, 8, 9, 10])
    assert page.first.number == 7


async def test_a_later_writer_fences_an_earlier_one_also_after_a_loss(
    layer: RedisChannelLayer, other: RedisChannelLayer, admin: "redis.Redis[bytes]"
) -> None:
    writers = [each.stream("a").writer() for each in (layer, other)]
    first, second = [await writer.__aenter__() for writer in writers]
    admin.flushall()
    first._fenced = None  # as if it had not been told
    with suppress(WriterFenced):  # the later one may have begun the stream again by then
        await first.append("first")
        await first.flush()
    await second.append("second")
    await second.flush()
    with pytest.raises(WriterFenced):
        await first.append("late")
        await first.flush()
    await second.__aexit__(None, None, None)
    with pytest.raises(WriterFenced):
        await first.__aexit__(None, None, None)
    assert items(await layer.stream("a").page()) == ["second"]


async def test_entries_are_encrypted(redis_url: str, admin: "redis.Redis[bytes]") -> None:
    layer = RedisChannelLayer(redis_url, symmetric_encryption_keys=["a secret"])
    async with layer.stream("a").writer() as out:
        await out.append("plain text")
    assert b"plain text" not in admin.dump(BATCHES)
    assert items(await layer.stream("a").page()) == ["plain text"]
    foreign = RedisChannelLayer(redis_url, symmetric_encryption_keys=["another secret"])
    page = await foreign.stream("a").page()
    assert (page.items, page.reset, page.caught_up) == ([], True, True), "what cannot be read is said"
    assert foreign.counts["entry of unknown key"] == 1
    await layer.close()
    await foreign.close()


async def test_a_batch_that_is_damaged_or_missing_is_said(
    layer: RedisChannelLayer, admin: "redis.Redis[bytes]"
) -> None:
    stream = layer.stream("a")
    async with stream.writer() as out:
        for number in range(4):
            await out.append(number)
            await out.flush()
    ids = [entry_id for entry_id, _ in admin.xrange(BATCHES)]
    admin.xdel(BATCHES, ids[1])
    page = await stream.page()
    assert (items(page), page.reset, page.caught_up) == ([0], False, False)
    page = await stream.page(page.next)
    assert (items(page), page.reset, page.over) == ([2, 3], True, True)
    admin.delete(BATCHES)
    page = await stream.page()
    assert (items(page), page.reset, page.over) == ([], True, True)


async def test_keys_of_another_type_are_replaced(layer: RedisChannelLayer, admin: "redis.Redis[bytes]") -> None:
    admin.set(BATCHES, "x")
    admin.set(STATE, "x")
    async with layer.stream("a").writer() as out:
        await out.append(1)
    assert items(await layer.stream("a").page()) == [1]
    assert layer.counts["wrong type"] == 2


async def test_a_damaged_state_counts_as_absent_until_the_next_batch(
    layer: RedisChannelLayer, admin: "redis.Redis[bytes]"
) -> None:
    stream, damages = layer.stream("a"), 0
    async with stream.writer() as out:
        for field in FIELDS:
            for odd in (None, b"", b"\xff", b"nan", b"1.5", b"9" * 17):
                if (field, odd) == ("grace", None) or (field == "cancelled" and odd is not None):
                    continue
                await out.append(field)
                await out.flush()
                assert admin.hdel(STATE, field) if odd is None else admin.hset(STATE, field, odd) == 0
                if field != "writer" or odd in (None, b"\xff"):
                    assert (await stream.page()).state is StreamState.ABSENT
                    assert not await stream.cancel()
                    damages += 1
                else:
                    admin.hset(STATE, "writer", b"\xff")  # else another writer has begun
                await out.append("next")
                await out.flush()
                assert items(await stream.page())[-1] == "next"
    assert layer.counts["odd stream"] == damages
    for writes in (stream.writer(), stream.writer(restart=True)):
        admin.hset(STATE, "epoch", b"x")
        async with writes as out:
            await out.append(1)
    admin.hset(STATE, "last", b"x")
    await stream.delete()
    assert not admin.exists(STATE)


async def test_a_stream_ends_while_redis_is_out_of_memory(
    layer: RedisChannelLayer, admin: "redis.Redis[bytes]"
) -> None:
    stream = layer.stream("a")
    writer = stream.writer()
    await writer.__aenter__()
    await writer.append(1)
    await writer.flush()
    admin.config_set("maxmemory", int(admin.info("memory")["used_memory"]) // 2)
    try:
        await stream.cancel()
        await writer.__aexit__(None, None, None)
        page = await stream.page()
        assert (page.state, page.cancelled, items(page)) == (StreamState.ENDED, True, [1])
        assert await stream.delete()
    finally:
        admin.config_set("maxmemory", 0)


async def test_keys_are_gone_when_a_stream_has_expired(layer: RedisChannelLayer, admin: "redis.Redis[bytes]") -> None:
    async with layer.stream("a").writer(ttl=0.2) as out:
        await out.append(1)
        await out.flush()
        assert 60_000 < admin.pttl(STATE) <= 60_200
        assert 60_000 < admin.pttl(BATCHES) <= 60_200
    await until(lambda: not admin.keys("asgibus:stream*"))
    assert admin.keys("asgibus:writing:*") == []


def test_streams_are_written_and_read_by_event_loops_that_end(redis_url: str) -> None:
    layer = RedisChannelLayer(redis_url)

    async def write(number: int) -> None:
        async with layer.stream("a").writer() as out:
            await out.append(number)

    async def collect() -> list[Any]:
        return [item async for _, item in layer.stream("a").read()]

    for number in range(3):
        asyncio.run(write(number))
        assert asyncio.run(collect()) == [number]
    asyncio.run(layer.close())
