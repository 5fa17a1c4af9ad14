"""Streams of the memory layer, by a clock that the test sets: writers that are silent, late or fenced."""

import asyncio
import logging
from contextlib import suppress
from typing import Any

import anyio
import pytest

from asgibus.layers import InMemoryChannelLayer, LayerUnavailable
from asgibus.layers.codec import MESSAGE_BYTES
from asgibus.layers.errors import MessageTooLarge, StreamError, StreamReset, WriterFenced
from asgibus.layers.streams import ABSENT_SECONDS, Page, Stream, StreamLimits, StreamState
from asgibus.layers.streams import broadcaster as broadcaster_module
from asgibus.layers.streams import stream as stream_module
from asgibus.layers.streams import writer as writer_module
from asgibus.layers.streams.identity import WRITER_SECONDS
from asgibus.layers.streams.redelivery import Redelivery, redelivery
from support.bus import until

pytestmark = pytest.mark.anyio


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def layer(clock: Clock) -> InMemoryChannelLayer:
    return InMemoryChannelLayer(clock=clock)


def items(page: Page) -> list[Any]:
    return [item for _, item in page.items]


async def test_a_stream_fails_without_a_sign_of_life_of_its_writer(layer: InMemoryChannelLayer, clock: Clock) -> None:
    stream = layer.stream("a")
    async with stream.writer() as out:
        await out.append(1)
        await out.flush()
        clock.now += WRITER_SECONDS - 1
        assert (await stream.page()).left == pytest.approx(1)
        await out.append(2)
        await out.flush()
        clock.now += WRITER_SECONDS
        page = await stream.page()
        assert (page.state, page.error, page.left) == (StreamState.FAILED, "the writer is gone", None)
        with pytest.raises(StreamError, match="the writer is gone"):
            _ = [entry async for entry in stream.read(str(page.last))]
        await out.append(3)  # it was only silent
        await out.flush()
        assert (await stream.page()).state is StreamState.OPEN
    assert items(await stream.page()) == [1, 2, 3]


async def test_a_writer_gives_signs_of_life(
    layer: InMemoryChannelLayer, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "SIGNS", 6000)
    stream = layer.stream("a")
    async with stream.writer():
        clock.now += WRITER_SECONDS - 1
        await until(lambda: layer._streams._streams["a"].fails_at == clock.now + WRITER_SECONDS)


async def test_an_interrupted_stream_waits_for_its_next_writer(layer: InMemoryChannelLayer, clock: Clock) -> None:
    stream = layer.stream("a")

    async def fail() -> None:
        redelivery.set(Redelivery(lambda: 30.0))
        async with stream.writer() as out:
            await out.append(1)
            raise ArithmeticError

    with pytest.raises(ArithmeticError):
        await asyncio.create_task(fail())
    page = await stream.page()
    assert (page.state, page.error, page.left) == (StreamState.OPEN, "", 30.0)
    await stream.cancel()
    async with stream.writer(restart=True) as out:
        assert out.cancelled, "who stopped it while there was no writer means the next one"
        await out.append(2)
        await out.flush()
        page = await stream.page(page.last)
        assert (page.reset, items(page)) == (True, [2])
    with pytest.raises(ArithmeticError):
        await asyncio.create_task(fail())
    clock.now += 30
    page = await stream.page()
    assert (page.state, page.error) == (StreamState.FAILED, "ArithmeticError")


async def test_a_stream_waits_no_longer_for_a_message_that_was_handled(layer: InMemoryChannelLayer) -> None:
    stream, message = layer.stream("a"), Redelivery(lambda: 30.0)
    reader = asyncio.create_task(anext(stream.read()))

    async def catch() -> None:
        redelivery.set(message)
        with suppress(ArithmeticError):
            async with stream.writer():
                raise ArithmeticError

    await asyncio.create_task(catch())
    assert (await stream.info()).state is StreamState.OPEN
    await message.fail()
    assert ((await stream.info()).state, (await stream.info()).error) == (StreamState.FAILED, "ArithmeticError")
    with pytest.raises(StreamError, match="ArithmeticError"):
        await asyncio.wait_for(reader, 5)
    await asyncio.create_task(catch())
    async with stream.writer(restart=True) as out:
        await message.fail()
        await out.append(1)
    assert (await stream.info()).state is StreamState.ENDED


async def test_a_stream_that_is_lost_before_its_end_is_stored_again(layer: InMemoryChannelLayer) -> None:
    stream = layer.stream("a")
    async with stream.writer() as out:
        await out.append(1)
        await out.flush()
        await layer.flush()
    page = await stream.page()
    assert (page.state, page.reset, items(page)) == (StreamState.ENDED, False, [1])


async def test_a_page_of_large_entries_is_bounded(layer: InMemoryChannelLayer) -> None:
    stream = layer.stream("a")
    async with stream.writer() as out:
        for number in range(20):
            await out.append([number, b"x" * 60_000])
    page = await stream.page()
    assert 4 <= len(page.items) <= 6
    assert (page.caught_up, page.over) == (False, False)
    read = [item[0] async for _, item in stream.read()]
    assert read == list(range(20))


@pytest.mark.parametrize("call", ["begin", "finish"])
async def test_a_writer_that_is_cancelled_while_it_begins_or_ends_goes_on_with_nothing(
    layer: InMemoryChannelLayer, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    stream = layer.stream("a")
    store, calls, goes_on = stream._store, asyncio.Event(), asyncio.Event()
    original = getattr(store, call)

    async def slow(*args: Any, **options: Any) -> Any:
        calls.set()
        await goes_on.wait()
        return await original(*args, **options)

    async def write() -> None:
        async with stream.writer() as out:
            await out.append(1)

    monkeypatch.setattr(store, call, slow)
    task = asyncio.create_task(write())
    await calls.wait()
    task.cancel()
    await asyncio.sleep(0)
    goes_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    page = await stream.page()
    expected = (StreamState.ENDED, "") if call == "finish" else (StreamState.FAILED, "the writer was stopped")
    assert (page.state, page.error) == expected
    assert not [each for each in asyncio.all_tasks() if each.get_name() == "stream a"]


def test_limits_of_another_type_are_a_type_error(layer: InMemoryChannelLayer) -> None:
    with pytest.raises(TypeError, match=r"the limits of a stream are StreamLimits\(…\), not 500"):
        layer.stream("a", limits=500)  # type: ignore[arg-type]


async def test_a_cancelled_writer_ends_its_stream(layer: InMemoryChannelLayer) -> None:
    stream = layer.stream("a")
    stored = asyncio.Event()

    async def write() -> None:
        async with stream.writer() as out:
            await out.append(1)
            await out.flush()
            stored.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(write())
    await asyncio.wait_for(stored.wait(), 5)
    task.cancel()
    await asyncio.wait([task])
    page = await stream.page()
    assert (page.state, page.error, items(page)) == (StreamState.FAILED, "the writer was stopped", [1])


async def test_a_writer_that_leaves_without_an_error_learns_that_it_was_fenced(layer: InMemoryChannelLayer) -> None:
    stream = layer.stream("a")
    first, second = stream.writer(), stream.writer()
    await first.__aenter__()
    await second.__aenter__()
    with pytest.raises(WriterFenced, match="another writer has begun"):
        await first.__aexit__(None, None, None)
    await second.__aexit__(None, None, None)
    assert (await stream.info()).state is StreamState.ENDED


async def test_an_error_of_the_app_is_not_hidden_by_the_fencing(
    layer: InMemoryChannelLayer, caplog: pytest.LogCaptureFixture
) -> None:
    stream = layer.stream("a")
    with caplog.at_level(logging.WARNING), pytest.raises(ArithmeticError):
        async with stream.writer():
            await stream.delete()
            raise ArithmeticError
    assert "stream 'a': its end was not written" in caplog.text


async def test_a_writer_that_was_replaced_is_cancelled_without_a_warning(
    layer: InMemoryChannelLayer, caplog: pytest.LogCaptureFixture
) -> None:
    stream = layer.stream("a")
    first, second = stream.writer(), stream.writer()
    await first.__aenter__()
    await second.__aenter__()
    error = asyncio.CancelledError()
    with caplog.at_level(logging.WARNING):
        await first.__aexit__(type(error), error, None)
    assert caplog.text == ""
    await second.__aexit__(None, None, None)


async def test_a_writer_is_used_in_its_context(layer: InMemoryChannelLayer) -> None:
    writer = layer.stream("a").writer()
    for call in (writer.append(1), writer.flush()):
        with pytest.raises(RuntimeError, match="inside of its context"):
            await call
    async with writer:
        pass
    with pytest.raises(RuntimeError, match="inside of its context"):
        await writer.append(1)
    with pytest.raises(RuntimeError, match="entered once"):
        await writer.__aenter__()


async def test_what_waits_for_the_store_is_bounded(
    layer: InMemoryChannelLayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "RETRY_SECONDS", 0.01)
    store = layer._streams
    append, away = store.append, True

    async def maybe_append(*args: Any) -> bool:
        if away:
            raise LayerUnavailable("away")
        return await append(*args)

    monkeypatch.setattr(store, "append", maybe_append)
    stream = Stream(store, "a", StreamLimits(), wait=0.05)
    count = 0
    async with stream.writer() as out:
        with pytest.raises(LayerUnavailable):
            while count < 1000:
                await out.append(b"x" * 5000)
                count += 1
        assert 40 < count < 80
        with pytest.raises(LayerUnavailable, match="could not be stored in time: away"):
            await out.flush()
        away = False
        await out.append(b"y")
        await out.flush()
    assert len(items(await stream.page())) == count + 1


async def test_a_lost_broadcast_is_repeated(layer: InMemoryChannelLayer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broadcaster_module, "RETRY_SECONDS", 0.01)
    messages = layer._streams.messages
    tell, lost = messages.tell, 0

    async def lose_some(broadcast: Any) -> None:
        nonlocal lost
        if broadcast.items and not lost:
            lost += 1
            raise LayerUnavailable("away")
        await tell(broadcast)

    monkeypatch.setattr(messages, "tell", lose_some)
    stream = layer.stream("a")
    seen: list[Any] = []

    async def read() -> None:
        async for _, item in stream.read():
            seen.append(item)

    async with stream.writer() as out:
        reader = asyncio.create_task(read())
        await until(lambda: layer.gauges() == {"written streams": 1, "stream bytes": 0, "stream readers": 1})
        await out.append(1)
        await until(lambda: seen == [1])
        assert lost == 1
        assert layer.gauges()["stream bytes"] == 2, "an array of one small number"
    await asyncio.wait_for(reader, 5)
    assert layer.gauges() == {"written streams": 0, "stream bytes": 0, "stream readers": 0}


async def test_the_last_entries_are_stored_again_after_a_loss(layer: InMemoryChannelLayer) -> None:
    stream = layer.stream("a")
    async with stream.writer() as out:
        offsets = []
        for number in range(10):
            offsets.append(await out.append([number, b"x" * 8000]))
            await out.flush()
        await layer.flush()
        await out.append([10, b""])
    page = await stream.page(offsets[5])
    assert (page.reset, [item[0] for item in items(page)]) == (False, [6, 7, 8, 9, 10])
    assert (await stream.page(offsets[4])).reset


async def test_a_reader_of_a_stream_that_is_lost_for_good_is_reset(
    layer: InMemoryChannelLayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ABSENT_SECONDS > 1
    monkeypatch.setattr(stream_module, "ABSENT_SECONDS", 0.05)
    with pytest.raises(StreamReset, match="is not there any more: read on after '0'"):
        _ = [entry async for entry in layer.stream("a").read("1700000000000-7")]


async def test_names_of_streams_are_checked(layer: InMemoryChannelLayer) -> None:
    for name in ("", "a b", "a:b", "a!b", "x" * 101, 7):
        with pytest.raises(TypeError, match="stream names are"):
            layer.stream(name)  # type: ignore[arg-type]


async def test_a_reader_stays_for_longer_than_channels_stay_in_groups() -> None:
    layer = InMemoryChannelLayer(group_expiry=0.2)
    stream = layer.stream("a")
    read: list[int] = []

    async def collect() -> None:
        async for _, number in stream.read():
            read.append(number)

    async with stream.writer() as out:
        reader = asyncio.create_task(collect())
        for number in range(1, 20):
            await out.append(number)
            await until(lambda: len(read) == number)  # noqa: B023
            await asyncio.sleep(0.02)  # the next entry comes while the reader waits
    await asyncio.wait_for(reader, 5)


async def test_a_reader_that_is_cancelled_while_it_joins_leaves_nothing_behind(
    layer: InMemoryChannelLayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = layer.stream("a")
    store, joined = stream._store.messages, asyncio.Event()
    follow = store.follow

    async def slow(name: str, channel: str) -> float:
        renew_in = await follow(name, channel)
        joined.set()
        await asyncio.sleep(10)
        return renew_in

    async def read() -> None:
        async for _ in stream.read():
            pass

    monkeypatch.setattr(store, "follow", slow)
    async with anyio.create_task_group() as group:
        group.start_soon(read)
        await joined.wait()
        group.cancel_scope.cancel()
    assert layer.gauges()["stream readers"] == 0
    assert not layer._groups


@pytest.mark.parametrize("odd", [7, b"x", "", "x" * 201, "\ud800", None])
async def test_an_id_of_a_message_is_a_text(layer: InMemoryChannelLayer, odd: Any) -> None:
    sending = layer.group_send("room", {"type": "x"}, keep=3, id=odd)
    if odd is None:
        assert await sending
        return
    with pytest.raises(ValueError, match="the id of a message is a text of 1 to 200 characters"):
        await sending


async def test_a_message_that_is_too_large_to_be_told_is_not_kept(layer: InMemoryChannelLayer) -> None:
    message = {"type": "websocket.send", "text": "<?>" + "x" * (MESSAGE_BYTES - 100)}
    with pytest.raises(MessageTooLarge):
        await layer.group_send("room", message, keep=3, placeholder="<?>")
    assert (await layer.group_past("room").page()).state is StreamState.ABSENT


async def test_the_kept_messages_of_a_group_are_no_stream_that_a_client_may_name(layer: InMemoryChannelLayer) -> None:
    await layer.group_send("room", {"type": "x", "text": "private"}, keep=3)
    with pytest.raises(TypeError, match=r"'group:room' has the kept messages of a group: see `group_past`"):
        layer.stream("group:room")
    assert [item["text"] for item in items(await layer.group_past("room").page())] == ["private"]
    with pytest.raises(ValueError, match="write it with group_send and keep"):
        layer.group_past("room").writer()
    with pytest.raises(TypeError, match="group names are"):
        layer.group_past("a:b")
    with pytest.raises(TypeError, match="the limits of a stream are"):
        layer.stream("a", limits=0)  # type: ignore[arg-type]


async def test_other_tasks_have_turns_while_a_writer_appends_in_a_loop(layer: InMemoryChannelLayer) -> None:
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    async with layer.stream("a").writer() as out:
        begun = turns
        for number in range(2000):
            await out.append(number)
        assert turns - begun >= 20
    counting.cancel()


async def test_members_that_had_all_messages_of_a_quiet_group_get_no_reset(
    layer: InMemoryChannelLayer, clock: Clock
) -> None:
    past = layer.group_past("room")
    for text in "ab":
        await layer.group_send("room", {"type": "x", "text": text}, keep=5, id=text)
    page = await past.page()
    clock.now += layer.group_expiry + 1
    late = await past.page(page.items[0][0])
    assert (late.reset, late.items, late.bytes) == (True, [], 0), "it lacks a message that has expired"
    assert not (await past.page(page.next)).reset
    assert await layer.group_send("room", {"type": "x", "text": "c"}, keep=5, id="a"), "an id that has expired"
    page = await past.page(page.next)
    assert (page.reset, [item["text"] for item in items(page)]) == (False, ["c"])
