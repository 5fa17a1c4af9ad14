"""Fair reading: the input of one client must not delay the other clients.

A socket's `InputBuffer` holds the bytes that have arrived and are not parsed. The `ReadScheduler` has the owner of the
buffer parse them in slices, and limits the time for that in each turn of the event loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from time import perf_counter
from typing import Final, Protocol

from asgibus.interface_server.terminator import FAULT, Abortable, SliceParser, abort_faulty

logger = logging.getLogger("asgibus.interface")

READ_SECONDS: Final = 0.01  # of a turn of the event loop, for all reading
BACKLOG_SECONDS: Final = 0.004  # of a turn, for input of earlier turns
SMALL: Final = 4 * 1024  # bytes: readers with no more input than this go before those with more
SLICE: Final = 4 * 1024  # bytes that a terminator of another package parses at once


class InputBuffer:
    """The input of one socket that is not parsed yet."""

    __slots__ = ("_transport", "held", "in_slice", "paused", "unread", "waits")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self.held = False
        """Whether the transport is paused for a move, whatever its owner wants."""
        self.unread: bytes | memoryview = b""
        """Bytes that have arrived and are not parsed yet."""
        self.waits = False
        """Whether the rest is read in a later turn of the event loop."""
        self.in_slice = False
        """Whether a slice is being read, so that no other one begins."""
        self.paused = False
        """Whether the owner has paused the transport."""

    def add(self, data: bytes) -> None:
        """Add bytes that have arrived."""
        self.unread = bytes(self.unread) + data if self.unread else data

    def take(self, most: int) -> bytes | memoryview:
        """Return the next bytes that have arrived, at most so many, and forget them."""
        unread = self.unread
        if len(unread) <= most:
            self.unread = b""
            return unread
        view = memoryview(unread)
        self.unread = view[most:]
        return view[:most]

    def pause(self, pause: bool) -> None:
        """Pause the transport, or resume it."""
        if pause is not self.paused and not self._transport.is_closing():
            self.paused = pause
            if not self.held:
                self._read_transport(not pause)

    @property
    def at_rest(self) -> bool:
        """Whether the socket is open, no slice of it is being read, and everything is written to it."""
        return not (self.in_slice or self._transport.is_closing() or self.is_unwritten)

    @property
    def is_unwritten(self) -> bool:
        """Whether something is still to be written to the socket."""
        return self._transport.get_write_buffer_size() > 0

    @property
    def descriptor(self) -> int:
        """The file descriptor of the socket."""
        number: int = self._transport.get_extra_info("socket").fileno()
        return number

    def hold(self) -> None:
        """Stop reading the transport until `release`, because the socket moves to another process."""
        if not self.held:
            self.held = True
            if not self.paused:
                self._read_transport(False)

    def release(self) -> None:
        """Let the owner decide again whether the transport is read."""
        if self.held:
            self.held = False
            if not self.paused:
                self._read_transport(True)

    def _read_transport(self, read: bool) -> None:
        if self._transport.is_closing():
            return
        if read:
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()


class SlicedProtocol(Abortable, Protocol):
    """The owner of an input buffer, as the scheduler sees it."""

    @property
    def input(self) -> InputBuffer:
        """The buffer."""

    def has_input(self) -> bool:
        """Return whether there is something that may be parsed now."""

    def read_slice(self) -> None:
        """Parse a few kilobytes, of the buffer or of what was taken from it before."""

    def slices_read(self) -> None:
        """Go on after some slices: call `InputBuffer.pause` with whether the rest has to wait."""


class ReadScheduler:
    """Shares the time of each turn of the event loop among the protocols that have input."""

    def __init__(self, loop: asyncio.AbstractEventLoop, counts: Counter[str]) -> None:
        self._loop = loop
        self._counts = counts
        self._began = 0.0  # when the first slice of this turn was read; 0.0 if none was
        self._waiting: deque[SlicedProtocol] = deque()
        self._waiting_small: deque[SlicedProtocol] = deque()  # those with little input wait for one turn only
        self._held = False

    def hold(self) -> None:
        """Parse nothing until `release`, because the sockets move to another process."""
        self._held = True

    def release(self) -> None:
        """Go on with the protocols that have input."""
        self._held = False
        if not self._began:
            self._loop.call_soon(self._next_turn)

    def try_slice(self, seconds: float) -> bool:
        """Return whether a slice may be read now. The first call in a turn of the event loop starts the clock.

        Args:
            seconds: How long reading may have taken in this turn.
        """
        if not self._began:
            self._began = perf_counter()
            self._loop.call_soon(self._next_turn)
            return True
        return perf_counter() - self._began < seconds

    def read(self, protocol: SlicedProtocol) -> None:
        """Have a protocol read its input, as far as this turn allows, and the rest in later ones.

        To be called when data has arrived, and when `has_input` may have become true for another reason.
        """
        buffer = protocol.input
        if buffer.waits or buffer.in_slice:
            return
        if self._held:
            self._wait(protocol, self._waiting)
            return
        small, seconds = len(buffer.unread) <= SMALL, READ_SECONDS
        while protocol.has_input():
            if not self.try_slice(seconds):
                self._wait(protocol, self._waiting_small if small else self._waiting)
                break
            seconds = BACKLOG_SECONDS
            self._read_slice(protocol)
        protocol.slices_read()

    def _next_turn(self) -> None:
        """Read one slice of each protocol that waits, as far as the time of the turn allows."""
        self._began = 0.0
        if self._held:
            return
        for waiting, seconds in ((self._waiting_small, READ_SECONDS), (self._waiting, BACKLOG_SECONDS)):
            for _ in range(len(waiting)):
                if not self.try_slice(seconds):
                    break
                protocol = waiting.popleft()
                try:
                    self._read_one(protocol)
                except Exception:  # a fault in one socket must not reach the others
                    logger.exception(FAULT, abort_faulty(protocol, self._counts))

    def _read_one(self, protocol: SlicedProtocol) -> None:
        """Read one slice of a protocol that has waited."""
        protocol.input.waits = False
        if protocol.has_input():
            self._read_slice(protocol)
        if protocol.has_input():
            self._wait(protocol, self._waiting)
        protocol.slices_read()

    def _wait(self, protocol: SlicedProtocol, waiting: deque[SlicedProtocol]) -> None:
        protocol.input.waits = True
        waiting.append(protocol)

    def _read_slice(self, protocol: SlicedProtocol) -> None:
        buffer = protocol.input
        buffer.in_slice = True
        try:
            protocol.read_slice()
        finally:
            buffer.in_slice = False


class TerminatorInput:
    """The input of a terminator of another package: the `SlicedInput` of `terminator`. Implements `SlicedProtocol`."""

    def __init__(self, scheduler: ReadScheduler, transport: asyncio.Transport, parser: SliceParser) -> None:
        self.input = InputBuffer(transport)
        self._scheduler = scheduler
        self._transport = transport
        self._parser = parser
        self._shut = False  # whether `pause` was called last

    def feed(self, data: bytes) -> None:
        """See `SlicedInput`."""
        self.input.add(data)
        self._scheduler.read(self)

    def pause(self) -> None:
        """See `SlicedInput`."""
        self._shut = True
        self.input.pause(True)

    def resume(self) -> None:
        """See `SlicedInput`."""
        self._shut = False
        self._scheduler.read(self)

    # Called by the scheduler.

    def has_input(self) -> bool:
        """See `SlicedProtocol`. A socket that is closing is not read."""
        return bool(self.input.unread) and not self._shut and not self._transport.is_closing()

    def read_slice(self) -> None:
        """See `SlicedProtocol`."""
        self._parser.parse(bytes(self.input.take(SLICE)))

    def slices_read(self) -> None:
        """See `SlicedProtocol`."""
        self.input.pause(self._shut or bool(self.input.unread))

    def abort(self) -> None:
        """See `Abortable`."""
        self._parser.abort()
