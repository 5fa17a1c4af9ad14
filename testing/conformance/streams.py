"""Check streams: channels that keep."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

from asgibus.layers.channel_layer import ChannelLayer
from asgibus.layers.errors import EntryTooLarge, StreamError, StreamReset, WriterFenced
from asgibus.layers.settings import StreamLimits
from asgibus.layers.streams import BEGINNING, Offset, Page, Stream, StreamState
from asgibus.testing.conformance.tools import (
    LayerFactory,
    another_layer,
    by_the_clock,
    expect,
    expect_equal,
    expect_error,
    fresh_layer,
    receive,
    within,
)

ITEMS: list[Any] = [None, True, -1, 2**63 - 1, 1.5, "text ö", b"bytes\xff", [1, [2]], {"a": {"b": [b"c"]}, 7: None}]
MANY = 3000


class _Mistake(Exception):
    """An error of the app that writes."""


async def _write(stream: Stream, items: list[Any], **options: Any) -> list[str]:
    """Write a stream from its beginning to its end. Return the offsets."""
    async with stream.writer(**options) as out:
        return [await out.append(item) for item in items]


async def _read(stream: Stream, after: str | None = None) -> list[tuple[str, Any]]:
    """Return what is read until the end."""
    return await within(_collect(stream, after), f"the end of the stream {stream.name}")


async def _collect(stream: Stream, after: str | None) -> list[tuple[str, Any]]:
    return [entry async for entry in stream.read(after)]


@asynccontextmanager
async def _reader(stream: Stream, after: str | None = None) -> AsyncIterator[asyncio.Task[list[tuple[str, Any]]]]:
    """Read a stream to its end in a task that has begun to follow."""
    task = asyncio.create_task(_collect(stream, after))
    await asyncio.sleep(0.05)  # most readers follow by then; the checks hold for those that do not, too
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait([task])


def _items(page: Page) -> list[Any]:
    return [item for _, item in page.items]


async def check_entries_are_kept_and_followed(make_layer: LayerFactory) -> None:
    """Check readers that come before the writer, meanwhile, and after the end."""
    async with fresh_layer(make_layer) as layer:
        await _check_readers(layer.stream("a.stream"), layer.stream("a.stream"))


async def check_entries_reach_readers_of_another_layer(make_layer: LayerFactory) -> None:
    """Check readers of a stream that another layer object writes."""
    async with fresh_layer(make_layer) as layer, another_layer(make_layer) as other:
        await _check_readers(layer.stream("a.stream"), other.stream("a.stream"))


async def _check_readers(read: Stream, written: Stream) -> None:
    async with AsyncExitStack() as readers:
        early = await readers.enter_async_context(_reader(read))
        async with written.writer() as out:
            offsets = [await out.append(item) for item in ITEMS]
            await out.flush()
            late = await readers.enter_async_context(_reader(read))
            later = await readers.enter_async_context(_reader(read, offsets[4]))
            for item in ITEMS:
                offsets.append(await out.append(item))
                await out.flush()
        written_entries = list(zip(offsets, ITEMS * 2, strict=True))
        expect_equal(len(set(offsets)), len(offsets), "different offsets")
        for reader, expected in ((early, written_entries), (late, written_entries), (later, written_entries[5:])):
            expect_equal(await within(reader, "the end of a stream"), expected, "entries of a reader")
    expect_equal(await _read(read), written_entries, "entries of a reader after the end")
    expect_equal(await _read(read, offsets[-1]), [], "entries behind the last one")
    expect_equal(await read.last(), offsets[-1], "offset of the last entry")


async def check_many_entries_arrive_in_order(make_layer: LayerFactory) -> None:
    """Check a fast writer, and a reader that follows it."""
    async with fresh_layer(make_layer) as layer:
        stream = layer.stream("fast")
        async with _reader(stream) as reader:
            offsets = await within(_write(stream, list(range(MANY))), f"{MANY} entries")
            entries = await within(reader, "the end of a stream")
        expect_equal(entries, list(zip(offsets, range(MANY), strict=True)), "entries of a reader")
        expect_equal(await _read(stream, offsets[MANY // 2]), entries[MANY // 2 + 1 :], "entries behind the middle")


async def check_pages_lead_through_a_stream(make_layer: LayerFactory) -> None:
    """Check that pages of any size show every entry once, and the state."""
    async with fresh_layer(make_layer) as layer:
        stream = layer.stream("pages")
        page = await stream.page()
        expect_equal((page.state, list(page.items), page.reset), (StreamState.ABSENT, [], False), "an absent stream")
        expect_equal(await stream.last(), None, "its last offset")
        async with stream.writer() as out:
            page = await stream.page()
            expect_equal(
                (page.state, list(page.items), page.caught_up), (StreamState.OPEN, [], True), "an empty stream"
            )
            for number in range(100):
                await out.append(number)
                if not number % 10:
                    await out.flush()
            await out.flush()
            for limit in (1, 7, 1000):
                after: Offset = BEGINNING
                found: list[Any] = []
                while not (page := await stream.page(after, limit)).caught_up or page.items:
                    expect(0 < len(page.items) <= limit, f"a page of {limit} has {len(page.items)} entries")
                    found += _items(page)
                    after = page.next
                expect_equal(found, list(range(100)), f"entries in pages of {limit}")
                expect_equal((page.state, page.over, after), (StreamState.OPEN, False, page.last), "the last page")
        page = await stream.page(after)
        end = page.state, page.over, page.left, page.error
        expect_equal(end, (StreamState.ENDED, True, None, ""), "the page after the end")
        expect((await stream.info()).bytes >= 100, "an ended stream names its size")


async def check_an_error_of_the_writer_is_told(make_layer: LayerFactory) -> None:
    """Check that readers get the type of the error, and not its text, after the entries before it."""
    async with fresh_layer(make_layer) as layer:
        stream = layer.stream("fails")
        async with _reader(stream) as reader:
            try:
                async with stream.writer() as out:
                    await out.append(1)
                    raise _Mistake("a secret")
            except _Mistake:
                pass
            error = await expect_error(StreamError, reader, "a reader of a failed stream")
        expect_equal(error.error, "_Mistake", "the error of the stream")
        page = await stream.page()
        expect_equal((page.state, _items(page), page.error), (StreamState.FAILED, [1], "_Mistake"), "a failed stream")
        await expect_error(StreamError, _read(stream), "a reader that comes later")


async def check_a_later_writer_fences_an_earlier_one(make_layer: LayerFactory) -> None:
    """Check that a later writer goes on with the stream, and that no entry of the earlier one is stored afterwards."""
    async with fresh_layer(make_layer) as layer:
        await _check_fencing(layer, layer)


async def check_a_writer_of_another_layer_fences_an_earlier_one(make_layer: LayerFactory) -> None:
    """Check the fencing between two layer objects."""
    async with fresh_layer(make_layer) as layer, another_layer(make_layer) as other:
        await _check_fencing(layer, other)


async def _check_fencing(first: ChannelLayer, second: ChannelLayer) -> None:
    async def be_fenced(goes_on: asyncio.Event) -> None:
        async with first.stream("fenced").writer() as out:
            await out.append("first")
            await out.flush()
            begun.set()
            await goes_on.wait()
            await out.append("late")

    begun, goes_on = asyncio.Event(), asyncio.Event()
    stream = second.stream("fenced")
    earlier = asyncio.create_task(be_fenced(goes_on))
    await within(begun.wait(), "the first writer")
    async with _reader(stream) as reader:
        async with stream.writer() as out:
            await out.append("second")
            await out.flush()
            goes_on.set()
            await expect_error(WriterFenced, earlier, "the end of a writer that was fenced")
            await out.append("third")
        entries = await within(reader, "the end of a stream")
    expect_equal([item for _, item in entries], ["first", "second", "third"], "entries of both writers")


async def check_a_stream_is_begun_anew(make_layer: LayerFactory) -> None:
    """Check the reader of an open stream that is restarted, and offsets of the stream before."""
    async with fresh_layer(make_layer) as layer:
        stream = layer.stream("anew")
        old = await _write(stream, ["old", "older"])
        new = await _write(stream, ["new"])
        error = await expect_error(StreamReset, _read(stream, old[0]), "a reader with an offset of the stream before")
        expect_equal(await _read(stream, error.resume), list(zip(new, ["new"], strict=True)), "entries after a reset")
        page = await stream.page(old[1])
        expect_equal((page.reset, _items(page)), (True, ["new"]), "a page after an offset of the stream before")
        begun, restarted = asyncio.Event(), asyncio.Event()

        async def write() -> None:
            async with stream.writer() as out:
                await out.append("before")
                await out.flush()
                begun.set()
                await within(restarted.wait(), "another writer")
                await out.append("late")

        writer = asyncio.create_task(write())
        await within(begun.wait(), "an entry")
        async with _reader(stream) as reader, stream.writer(restart=True) as again:
            restarted.set()
            await again.append("after")
            await again.flush()
            await expect_error(StreamReset, reader, "a reader of a stream that was begun anew")
            await expect_error(WriterFenced, writer, "the writer before")
        expect_equal(_items(await stream.page()), ["after"], "entries of a stream that was begun anew")


async def check_a_writer_is_asked_to_stop(make_layer: LayerFactory) -> None:
    """Check `cancel` from another part of the program, and without a writer."""
    async with fresh_layer(make_layer) as layer:
        stream = layer.stream("stop")
        expect_equal(await stream.cancel(), False, "cancel of an absent stream")
        async with stream.writer() as out:
            expect(not out.cancelled, "a new writer is not cancelled")
            expect_equal(await stream.cancel(), True, "cancel of an open stream")
            await within(out.wait_cancelled(), "a writer that was cancelled")
            expect(out.cancelled and (await stream.info()).cancelled, "a cancelled stream says so")
            await out.append("last words")
        expect_equal(await stream.cancel(), False, "cancel of an ended stream")
        expect_equal(_items(await stream.page()), ["last words"], "entries of a cancelled stream")
        async with stream.writer() as out:
            expect(not out.cancelled, "a stream that is begun anew is not cancelled")


async def check_what_falls_off_is_said(make_layer: LayerFactory) -> None:
    """Check the limits of entries and bytes, and readers whose next entry is gone."""
    async with fresh_layer(make_layer) as layer:
        stream = layer.stream("short", StreamLimits(entries=10))
        async with stream.writer() as out:
            offsets = []
            for number in range(25):
                offsets.append(await out.append(number))
                await out.flush()
            for begin, reset in ((None, True), (offsets[13], True), (offsets[14], False), (offsets[20], False)):
                page = await stream.page(begin)
                expect_equal(page.reset, reset, f"the reset of a page after {begin}")
            expect_equal(_items(await stream.page()), list(range(15, 25)), "entries within the limit")
            error = await expect_error(StreamReset, _read(stream), "a reader from the beginning")
            expect_equal(error.resume, offsets[14], "where reading is possible")
        expect_equal([item for _, item in await _read(stream, error.resume)], list(range(15, 25)), "what is kept")
        stream = layer.stream("small", StreamLimits(bytes=5000))
        async with stream.writer() as out:
            for number in range(20):
                await out.append([number, b"x" * 1000])
                await out.flush()
            page = await stream.page()
            kept = [item[0] for item in _items(page)]
            expect(3 <= len(kept) <= 5 and kept[-1] == 19 and page.bytes <= 5000, f"of 20 KB, {page.bytes} are kept")
            expect_equal((page.reset, page.first.number), (True, kept[0] + 1), "a page from the beginning")


async def check_an_entry_has_a_limit(make_layer: LayerFactory) -> None:
    """Check items that are too large, and of other types: the stream goes on without them."""
    async with fresh_layer(make_layer) as layer:
        stream = layer.stream("large")
        async with stream.writer() as out:
            await out.append("before")
            await expect_error(EntryTooLarge, out.append(b"x" * 2**20), "an entry of 1 MiB")
            await expect_error(TypeError, out.append({1, 2}), "an entry that is a set")
            await out.append(b"x" * 60_000)
        expect_equal([len(item) for _, item in await _read(stream)], [6, 60_000], "sizes of the entries")


async def check_a_deleted_stream_is_gone(make_layer: LayerFactory) -> None:
    """Check that readers and the writer learn that a stream was deleted, and that it may be begun again."""
    async with fresh_layer(make_layer) as layer:
        stream = layer.stream("deleted")
        expect_equal(await stream.delete(), False, "delete of an absent stream")
        offsets: list[str] = []

        async def write() -> None:
            async with stream.writer() as out:
                offsets.append(await out.append(1))
                await out.flush()
                written.set()
                await within(gone.wait(), "the deletion")
                await out.append(2)

        written, gone = asyncio.Event(), asyncio.Event()
        writer = asyncio.create_task(write())
        await within(written.wait(), "an entry")
        async with _reader(stream) as reader:
            expect_equal(await stream.delete(), True, "delete of a stream")
            gone.set()
            await expect_error(StreamReset, reader, "a reader of a deleted stream")
        await expect_error(WriterFenced, writer, "a writer of a deleted stream")
        page = await stream.page(offsets[0])
        expect_equal((page.state, list(page.items), page.reset), (StreamState.ABSENT, [], True), "a deleted stream")
        expect_equal(await stream.last(), None, "its last offset")
        again = await _write(stream, ["again"])
        expect_equal(await _read(stream), list(zip(again, ["again"], strict=True)), "a stream after its deletion")


async def check_a_writer_goes_on_when_all_is_lost(make_layer: LayerFactory) -> None:
    """Check that a follower that had everything misses nothing, and that another one learns of the loss."""
    async with fresh_layer(make_layer) as layer:
        stream = layer.stream("lost")
        async with stream.writer() as out:
            offsets = [await out.append(number) for number in range(3)]
            await out.flush()
            await layer.flush()
            page = await stream.page(offsets[0])
            expect_equal((page.state, page.reset), (StreamState.ABSENT, False), "a stream that was lost")
            offsets.append(await out.append(3))
            await out.flush()
            page = await stream.page(offsets[2])
            expect_equal((_items(page), page.reset), ([3], False), "a page for who had all that is lost")
            page = await stream.page(offsets[1])
            whole = (_items(page), page.reset) == ([2, 3], False)  # the writer had the lost entry still
            expect(whole or (page.reset and _items(page)[-1:] == [3]), f"the loss of an entry was not said: {page}")
        expect_equal(len(await _read(stream, offsets[2])), 1, "entries after the loss")


async def check_the_content_type_is_kept(make_layer: LayerFactory) -> None:
    """Check that a stream has the type of its writer, also after a loss, and that the next writer may omit it."""
    async with fresh_layer(make_layer) as layer:
        stream = layer.stream("typed")
        with suppress(WriterFenced):
            async with stream.writer(content_type="text/plain") as out:
                await out.append("a")
                await out.flush()
                expect_equal((await stream.info()).content_type, "text/plain", "the content type")
                await layer.flush()
                await out.append("b")
                await out.flush()
                expect_equal((await stream.info()).content_type, "text/plain", "the content type after a loss")
                async with stream.writer():
                    expect_equal((await stream.info()).content_type, "text/plain", "that with another writer")
        async with stream.writer():
            expect_equal((await stream.info()).content_type, "", "the content type of a stream that is begun anew")


@by_the_clock
async def check_an_ended_stream_expires(make_layer: LayerFactory, second: float) -> None:
    """Check that an ended stream is kept for its time, and no longer."""
    async with fresh_layer(make_layer) as layer:
        stream = layer.stream("brief")
        offsets = await _write(stream, [1], ttl=second)
        await _write(layer.stream("lasting"), [1])
        expect_equal(len(await _read(stream)), 1, "entries of an ended stream")
        await asyncio.sleep(1.2 * second)  # the clock of the store cannot be set by a check
        page = await stream.page(offsets[0])
        expect_equal((page.state, list(page.items)), (StreamState.ABSENT, []), "a stream that has expired")
        expect_equal(len(await _read(layer.stream("lasting"))), 1, "entries of another stream")


async def check_messages_of_a_group_are_kept(make_layer: LayerFactory) -> None:
    """Check the limit, ids, offsets in the text, and that members get each message once, as any other one."""
    async with fresh_layer(make_layer) as layer:
        await _check_past(layer, layer)


async def check_messages_of_a_group_are_kept_for_another_layer(make_layer: LayerFactory) -> None:
    """Check kept messages that another layer object sends."""
    async with fresh_layer(make_layer) as layer, another_layer(make_layer) as other:
        await _check_past(layer, other)


async def _check_past(layer: ChannelLayer, sender: ChannelLayer) -> None:
    member, past = await layer.new_channel(), layer.group_past("room")
    await layer.group_add("room", member)
    async with _reader(past) as reader:
        for number in range(12):
            message = {"type": "some", "text": f"{number} at <?> <?>"}
            new = await sender.group_send("room", message, keep=10, id=f"id.{number}", placeholder="<?>")
            expect_equal(new, True, "a new message")
        expect_equal(await sender.group_send("room", {"type": "x"}, keep=10, id="id.11"), False, "a repeated message")
        expect_equal(await sender.group_send("room", {"type": "some", "n": 1}), True, "a message that is not kept")
        expect_equal(await sender.group_send("room", {"type": "x"}, keep=10, id="id.1"), True, "an id that fell off")
        page = await past.page()
        expect_equal((page.state, page.reset, len(page.items)), (StreamState.OPEN, True, 10), "the kept messages")
        offsets = [str(offset) for offset, _ in page.items]
        received = [await receive(layer, member) for _ in range(14)]
        texts = [message.get("text") for message in received[3:12]]
        expect_equal(texts, [f"{n} at {offsets[n - 3]} <?>" for n in range(3, 12)], "messages with their offsets")
        expect_equal(received[12], {"type": "some", "n": 1}, "a message that is not kept")
        await expect_error(ValueError, sender.group_send("room", {"type": "x"}, id="a"), "an id without keep")
        wrong = sender.group_send("room", {"type": "x", "text": "a"}, keep=10, placeholder="b")
        await expect_error(ValueError, wrong, "a placeholder that does not occur")
        expect(not reader.done(), f"a reader of the kept messages ended: {reader}")


CHECKS = (
    check_entries_are_kept_and_followed,
    check_many_entries_arrive_in_order,
    check_pages_lead_through_a_stream,
    check_an_error_of_the_writer_is_told,
    check_a_later_writer_fences_an_earlier_one,
    check_a_stream_is_begun_anew,
    check_a_writer_is_asked_to_stop,
    check_what_falls_off_is_said,
    check_an_entry_has_a_limit,
    check_a_deleted_stream_is_gone,
    check_a_writer_goes_on_when_all_is_lost,
    check_the_content_type_is_kept,
    check_an_ended_stream_expires,
    check_messages_of_a_group_are_kept,
)
SHARED_CHECKS = (
    check_entries_reach_readers_of_another_layer,
    check_a_writer_of_another_layer_fences_an_earlier_one,
    check_messages_of_a_group_are_kept_for_another_layer,
)
