"""The streams that connections of this process follow.

A connection that follows a stream gets its entries straight from here: first those that are kept, in pages, and then
those that are appended, by broadcasts to the stream's group. No worker takes part. `protocol.followers` decides who
gets what. Pages are read at the pace of the clients; a client that is too slow for the broadcasts goes back to pages.
Followers that are at the same offset share the reads, and those with the same template share the encoded bytes.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Protocol

from asgibus.interface_server.callback_tasks import CallbackTasks
from asgibus.interface_server.terminator import FAULT, Abortable, abort_faulty
from asgibus.layers.contract import Bus, Message
from asgibus.layers.errors import LayerUnavailable
from asgibus.layers.names import stream_group
from asgibus.layers.streams.offsets import Offset, parse_offset
from asgibus.layers.streams.page import ABSENT_SECONDS, Page, StreamState, parse_broadcast
from asgibus.protocol.counted_log import CountedLog
from asgibus.protocol.events import Event
from asgibus.protocol.followers import Delivery, FollowedStream, Follower, FollowEvent, FollowState
from asgibus.protocol.stream_frames import KEEP_ALIVE, read_template

logger = logging.getLogger("asgibus.interface")

GROUP_PREFIX: Final = stream_group("")
PAGE_ENTRIES: Final = 200  # of one read: what a slow client may have in its write buffer at most
BYTES_AT_ONCE = 8 * 1024 * 1024  # about so many are written for one page, in one callback of the event loop
ENTRY_COST: Final = 512  # bytes that are written as fast as an entry is encoded
READS_AT_ONCE = 8  # pages that are read, and in memory, at a time
LOOK_SECONDS = 60.0  # without a broadcast, after which a page is read in case one was lost
KEEP_SECONDS = 5.0  # in the group of a stream between two polls
POLL_SECONDS = 0.5  # between pages after an interruption
POLLED_SECONDS = 4.0  # after an interruption: broadcasts wait until all processes have joined their groups again
RETRY_SECONDS = 1.0  # until a page is read again that could not be read

ReadPage = Callable[[str, Offset, int], Awaitable[Page]]
"""Reads a page: the stream, the offset behind which it begins, and the largest number of entries."""


class Output(Abortable, Protocol):
    """The terminator of a connection, as the streams that it follows see it: see `SharedWriter`."""

    @property
    def write_paused(self) -> bool:
        """Whether the socket has no room."""

    def write_shared(self, events: Sequence[Event], shared: dict[str, Any]) -> None:
        """Write events that other connections get too."""


class Reader(Protocol):
    """A connection, as the streams that it follows see it."""

    follows: dict[str, Following] | None

    @property
    def shared_writer(self) -> Output:
        """The terminator, which writes what other connections get too."""

    def group_done(self, group: str, error: str | None) -> None:
        """Answer the oldest request of the app for that group."""

    def end_detached(self) -> None:
        """End a response that no run of the app sends any more, because its stream is over."""


class Frames(Protocol):
    """Turns entries of a stream into events. Followers that have the same object get the same events."""

    @property
    def packed(self) -> bytes:
        """The template of the app."""

    def events(self, stream: str, delivery: Delivery[Any], bad: list[str]) -> Sequence[Event]:
        """Return the events of a delivery. See `StreamFrames`."""


class Following(Follower):
    """A connection that follows a stream.

    Args:
        reader: The connection.
        frames: How it gets the entries.
        detached: Whether its response ends with the stream.
        after: The offset of the last entry that it has.
    """

    __slots__ = ("detached", "frames", "reader")

    def __init__(self, reader: Reader, frames: Frames, after: Offset, *, detached: bool) -> None:
        super().__init__(after)
        self.reader = reader
        self.frames = frames
        self.detached = detached


class _Stream(FollowedStream[Following]):
    """A stream that connections of this process follow, and what is under way for it."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.joined = False
        """Whether broadcasts of the stream reach this process."""
        self.unanswered: list[Reader] = []
        """The connections whose apps wait until it has joined."""
        self.busy = False
        """Whether a task joins the group, or reads pages."""
        self.retry_at = -math.inf
        self.look_at = math.inf
        self.written_at = math.inf  # when all followers got something
        self.absent_since = math.inf
        self.keep_until = -math.inf
        """Until when this process stays in the group without a follower."""


class Followers:
    """The connections of this process that follow streams.

    Args:
        log: Counts and logs what should not happen.
        most: How many streams one connection may follow.
        keep_alive: Seconds of silence after which event streams get a comment.
    """

    def __init__(self, log: CountedLog, most: int, keep_alive: float) -> None:
        self._log = log
        self._counts = log.counts
        self._most = most
        self._keep_alive_seconds = keep_alive
        self._streams: dict[str, _Stream] = {}
        self._now = 0.0
        self._held = False
        self._polled_until = -math.inf
        self._bus: Bus
        self._tasks: CallbackTasks
        self._read_page: ReadPage
        self._reads = asyncio.Semaphore(READS_AT_ONCE)

    def on_bus(self, bus: Bus, tasks: CallbackTasks, read_page: ReadPage, now: float) -> None:
        """Join the groups of streams on that bus.

        Args:
            bus: The bus.
            tasks: Runs the joining and reading.
            read_page: Reads pages.
            now: The time of the event loop in seconds.
        """
        self._now = now
        self._bus = bus
        self._tasks = tasks
        self._read_page = read_page

    def __len__(self) -> int:
        """Return how many followers there are."""
        return sum(map(len, self._streams.values()))

    @property
    def streams(self) -> int:
        """The number of streams that are followed."""
        return len(self._streams)

    # Called by connections.

    def follow(self, reader: Reader, name: str, after: str, template: bytes, *, detached: bool = False) -> None:
        """Have a connection follow a stream, and call its `group_done` once no entry can be missed.

        One that follows the stream already, or did until the end, goes on where it is, with the new template.

        Args:
            reader: The connection.
            name: The stream.
            after: The offset of the last entry that the client has.
            template: The packed template.
            detached: Whether the response ends with the stream, and the app gets no answer.
        """
        frames = read_template(template)
        if reader.follows is None:
            reader.follows = {}
        follower = reader.follows.get(name)
        if follower is None:
            if not detached and len(reader.follows) >= self._most and not self._forget_ended(reader.follows):
                text = "a connection cannot follow another stream: it follows as many as --max-follows allows (%d)"
                self._log.count("too many follows", text, self._most)
                reader.group_done(stream_group(name), text % self._most)
                return
            follower = reader.follows[name] = Following(reader, frames, parse_offset(after), detached=detached)
            is_new = True
        else:
            follower.frames = frames
            follower.detached = follower.detached or detached
            is_new = follower.state is FollowState.ENDED
        stream = self._stream(name)
        if is_new:
            stream.add(follower)
        if detached:
            pass
        elif stream.joined:
            reader.group_done(stream_group(name), None)
        else:
            stream.unanswered.append(reader)
        self._go_on(stream)

    def add(self, name: str, follower: Following, *, at_once: bool = True) -> None:
        """Add one that follows a stream without an app, and no other stream.

        Args:
            name: The stream.
            follower: The follower.
            at_once: Whether to begin now, and not at the next tick: there is no place on the bus before a move is done.
        """
        follower.reader.follows = {name: follower}
        stream = self._stream(name)
        stream.add(follower)
        if follower.reader.shared_writer.write_paused:
            stream.hold(follower)
        if at_once:
            self._go_on(stream)

    def unfollow(self, reader: Reader, name: str) -> None:
        """Have a connection follow a stream no more, and forget its offset. Calls `group_done`."""
        self.forget(reader, name)
        reader.group_done(stream_group(name), None)

    def forget(self, reader: Reader, name: str) -> None:
        """Have a connection follow a stream no more, if it does."""
        follower = (reader.follows or {}).pop(name, None)
        if follower is not None:
            self._remove(name, follower)

    def remove(self, reader: Reader) -> None:
        """Remove a connection, because it has ended."""
        follows, reader.follows = reader.follows, None
        for name, follower in (follows or {}).items():
            self._remove(name, follower)

    def release(self, reader: Reader) -> None:
        """Read on for a connection, because its client has room again."""
        for name, follower in (reader.follows or {}).items():
            stream = self._streams.get(name)
            if stream is not None and follower.state is FollowState.BEHIND:
                stream.release(follower)
                self._go_on(stream)

    def _forget_ended(self, follows: dict[str, Following]) -> bool:
        """Forget the stream that has ended first. Return whether there is one."""
        for name, follower in follows.items():
            if follower.state is FollowState.ENDED:
                del follows[name]
                return True
        return False

    def _stream(self, name: str) -> _Stream:
        stream = self._streams.get(name)
        if stream is None:
            stream = self._streams[name] = _Stream(name)
            stream.look_at = self._now + LOOK_SECONDS
            stream.written_at = self._now
        return stream

    def _remove(self, name: str, follower: Following) -> None:
        stream = self._streams.get(name)
        if stream is not None:
            stream.remove(follower)
            self._leave_if_empty(stream)

    def keep(self, name: str) -> None:
        """Stay in the group of a stream for a while, because a client that polls is about to come back."""
        stream = self._streams.get(name)
        if stream is not None:
            stream.keep_until = self._now + KEEP_SECONDS

    def _leave_if_empty(self, stream: _Stream) -> None:
        if self._now < stream.keep_until:
            return
        if not len(stream) and self._streams.get(stream.name) is stream:
            del self._streams[stream.name]
            self._tasks.start_soon(self._leave, stream.name)

    async def _leave(self, name: str) -> None:
        try:
            await self._bus.leave_group(stream_group(name))
        except LayerUnavailable as error:  # harmless: the next broadcast finds no follower here
            logger.info("the followers of stream %r could not be left: %s", name, error)

    # Joining and reading.

    def _go_on(self, stream: _Stream) -> None:
        """Join, or read a page, if that is due and not under way."""
        if not stream.busy and self._now >= stream.retry_at:
            if not stream.joined:
                if not self._held or stream.unanswered:  # the app would not be answered by the other process
                    stream.busy = True
                    self._tasks.start_soon(self._join, stream)
            elif stream.reads_due and not self._held:
                stream.busy = True
                self._tasks.start_soon(self._read, stream)

    async def _join(self, stream: _Stream) -> None:
        error: str | None = None
        try:
            await self._bus.join_group(stream_group(stream.name))
            stream.joined = True
        except LayerUnavailable as unavailable:
            error = str(unavailable)
            self._log.count("stream not followed", "stream %r could not be followed: %s", stream.name, error)
        except Exception as fault:  # whatever it is, the app must get an answer
            error = f"the layer failed: {type(fault).__name__}"
            self._counts["stream not followed"] += 1
            logger.exception("stream %r could not be followed", stream.name)
        stream.busy = False
        unanswered, stream.unanswered = stream.unanswered, []
        is_current = self._streams.get(stream.name) is stream  # else all have left it, and perhaps followed again
        for reader in unanswered:
            if error is not None and is_current:
                self._forget_failed(reader, stream)
            reader.group_done(stream_group(stream.name), error)
        if error is not None:
            stream.retry_at = self._now + RETRY_SECONDS  # responses without a run of the app wait
            self._leave_if_empty(stream)
        self._go_on(stream)

    def _forget_failed(self, reader: Reader, stream: _Stream) -> None:
        """Have a connection not follow a stream, because its app is told so."""
        follower = (reader.follows or {}).pop(stream.name, None)
        if follower is not None:
            stream.remove(follower)

    async def _read(self, stream: _Stream) -> None:
        """Read pages until no follower can take another one."""
        try:
            while stream.reads_due and not self._held:
                after, known = stream.next_read, stream.tail
                if not self._hold_slow(stream, after):
                    continue
                async with self._reads:
                    # Pages end at the same numbers, so that followers at different offsets soon share the reads.
                    page = await self._read_page(stream.name, after, PAGE_ENTRIES - after.number % PAGE_ENTRIES)
                if self._held:
                    break  # the followers move to another process, with their offsets
                self._counts["stream page"] += 1
                self._on_page(stream, after, known, page)
        except LayerUnavailable as unavailable:
            stream.retry_at = self._now + RETRY_SECONDS
            self._log.count("stream not read", "stream %r could not be read: %s", stream.name, unavailable)
        except Exception:  # whatever it is, the followers wait for the next attempt
            stream.retry_at = self._now + RETRY_SECONDS
            self._counts["stream not read"] += 1
            logger.exception("stream %r could not be read", stream.name)
        finally:
            stream.busy = False

    def _on_page(self, stream: _Stream, after: Offset, known: Offset, page: Page) -> None:
        self._look_later(stream, page.left)
        if page.state is not StreamState.ABSENT:
            stream.absent_since = math.inf
        elif stream.absent_since == math.inf:
            stream.absent_since = self._now
        gone = self._now - stream.absent_since >= ABSENT_SECONDS
        self._hold_slow(stream, after)
        self._write(stream, stream.on_page(after, known, page, most=_most_readers(page), gone=gone))

    def _hold_slow(self, stream: _Stream, after: Offset) -> bool:
        """Hold those that can read a page and whose clients have no room: pages of other streams may have filled it.

        Returns:
            Whether there are others.
        """
        readers = stream.readers(after)
        slow = [each for each in readers if each.reader.shared_writer.write_paused]
        for follower in slow:
            stream.hold(follower)
        return len(slow) < len(readers)

    def broadcast(self, group: str, message: Message) -> None:
        """Handle a message to the group of a stream."""
        stream = self._streams.get(group[len(GROUP_PREFIX) :])
        if stream is None:
            return
        try:
            broadcast = parse_broadcast(message)
        except ValueError as error:
            self._log.count("bad message", "a message to group %r was dropped: %s", group, error)
            return
        self._look_later(stream, broadcast.left)
        for follower in [each for each in stream.live if each.reader.shared_writer.write_paused]:
            self._counts["slow follower"] += 1
            stream.hold(follower)
        if _is_costly(stream, broadcast.items):
            stream.all_read()  # some at a time
        delivery = stream.on_broadcast(broadcast)
        if delivery is not None:
            if len(delivery.followers) == len(stream):
                stream.written_at = self._now
            self._write(stream, delivery)
        self._go_on(stream)

    def _look_later(self, stream: _Stream, left: float | None) -> None:
        seconds = LOOK_SECONDS if self._now >= self._polled_until else POLL_SECONDS
        stream.look_at = self._now + (seconds if left is None else min(left, seconds))

    def interrupted(self) -> None:
        """Read pages for all followers, because broadcasts may be lost, and for a while none will come."""
        self._polled_until = self._now + POLLED_SECONDS
        for stream in self._streams.values():
            self._look_later(stream, None)
            stream.all_read()
            self._go_on(stream)

    # Writing.

    def _write(self, stream: _Stream, delivery: Delivery[Following] | None) -> None:
        """Write to followers what they are to get. It is encoded once for each template."""
        if delivery is None:
            return
        encoded: dict[Frames, tuple[Sequence[Event], dict[str, Any]]] = {}
        for follower in delivery.followers:
            frames = follower.frames
            pair = encoded.get(frames)
            if pair is None:
                pair = encoded[frames] = self._encode(stream, frames, delivery), {}
            events, shared = pair
            writer = follower.reader.shared_writer
            try:
                if events:
                    writer.write_shared(events, shared)
                if delivery.over is not None:
                    if follower.detached:
                        follower.reader.end_detached()
                elif writer.write_paused:
                    stream.hold(follower)
            except Exception:  # the other followers still get theirs
                logger.exception(FAULT, abort_faulty(writer, self._counts))
        if delivery.over is not None:
            self._leave_if_empty(stream)

    def _encode(self, stream: _Stream, frames: Frames, delivery: Delivery[Following]) -> Sequence[Event]:
        bad: list[str] = []
        events = frames.events(stream.name, delivery, bad)
        for error in bad:
            self._log.count("bad entry", "an entry of stream %r could not be written: %s", stream.name, error)
        return events

    # Time.

    def tick(self, now: float) -> None:
        """Handle the passing of time. To be called several times per second.

        Args:
            now: The time of the event loop in seconds.
        """
        self._now = now
        for stream in [*self._streams.values()]:
            if now >= stream.absent_since + ABSENT_SECONDS > -math.inf:
                stream.absent_since = -math.inf  # what it had will not come back
                stream.all_read()
            if now >= stream.look_at:
                self._look_later(stream, None)
                stream.all_read()
            if now - stream.written_at >= self._keep_alive_seconds:
                stream.written_at = now
                self._keep_alive(stream)
            self._go_on(stream)
            if now >= stream.keep_until > -math.inf:
                stream.keep_until = -math.inf
                self._leave_if_empty(stream)

    def _keep_alive(self, stream: _Stream) -> None:
        shared: dict[str, Any] = {}
        for follower in [*stream]:
            reader = follower.reader
            if follower.detached and not reader.shared_writer.write_paused:
                try:
                    reader.shared_writer.write_shared((KEEP_ALIVE,), shared)
                except Exception:  # the other followers still get theirs
                    logger.exception(FAULT, abort_faulty(reader.shared_writer, self._counts))

    # The move to another process.

    def export(self, reader: Reader) -> list[tuple[Any, ...]]:
        """Return what a connection follows, as `restore` takes it."""
        exported = []
        for name, each in (reader.follows or {}).items():
            stream = self._streams.get(name)
            offset = each.after if stream is None else stream.offset(each)
            ended_at = None if each.ended_at is None else str(each.ended_at)
            ended = each.state is FollowState.ENDED
            exported.append((name, str(offset), each.frames.packed, each.detached, ended, ended_at))
        return exported

    def restore(self, reader: Reader, follows: Sequence[Sequence[Any]]) -> None:
        """Have a connection of another process go on with what it follows."""
        for name, offset, template, detached, ended, ended_at in follows:
            follower = Following(reader, read_template(template), parse_offset(offset), detached=detached)
            if ended_at is not None:
                follower.ended_at = parse_offset(ended_at)
            if reader.follows is None:
                reader.follows = {}
            reader.follows[name] = follower
            if ended:
                follower.change(FollowEvent.END)
            else:
                self._stream(name).add(follower)

    def hold(self) -> None:
        """Write nothing more, because the connections move to another process."""
        self._held = True
        for stream in [*self._streams.values()]:
            stream.keep_until = -math.inf
            self._leave_if_empty(stream)  # the other process knows groups by their followers

    def go_on(self) -> None:
        """Read on, because the connections stay."""
        self._held = False
        for stream in self._streams.values():
            self._go_on(stream)


def _most_readers(page: Page) -> int | None:
    """Return how many followers get a page at a time, so that a thousand of them do not hold the event loop."""
    if not page.items:
        return None
    average = page.bytes // max(1, page.last.number - page.first.number + 1)  # of what is kept
    return max(1, BYTES_AT_ONCE // _cost([item for _, item in page.items], average))


def _is_costly(stream: _Stream, items: Sequence[Any]) -> bool:
    """Return whether the entries of a broadcast would hold the event loop, because followers have many templates."""
    if not items or len(stream.live) * (cost := _cost(items)) <= BYTES_AT_ONCE:
        return False
    return len({each.frames for each in stream.live}) * cost > BYTES_AT_ONCE


def _cost(items: Sequence[Any], average: int = 0) -> int:
    """Return about how many bytes are written as fast as these entries are encoded, and written, once.

    Args:
        items: The entries.
        average: The size of one that is neither text nor bytes.
    """
    size = sum([len(item) if type(item) in (str, bytes) else average for item in items])
    return max(size, len(items) * ENTRY_COST)
