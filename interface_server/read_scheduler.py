"""Fair reading: the input of one client must not delay the other clients.

The `ReadScheduler` limits the time for reading in each turn of the event loop. A `SlicedReader` parses what its socket
has received in slices, and asks the scheduler before each.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from time import perf_counter

from asgibus.interface_server.terminator import FAULT, abort_faulty

logger = logging.getLogger("asgibus.interface")

READ_SECONDS = 0.01  # of a turn of the event loop, for all reading
BACKLOG_SECONDS = 0.004  # of a turn, for input of earlier turns
SMALL = 4 * 1024  # bytes: readers with no more input than this go before those with more


class ReadScheduler:
    """Shares the time of each turn of the event loop among the readers that have input."""

    def __init__(self, loop: asyncio.AbstractEventLoop, counts: Counter[str]) -> None:
        self._loop = loop
        self._counts = counts
        self._began = 0.0  # when the first slice of this turn was read; 0.0 if none was
        self._waiting: deque[SlicedReader] = deque()
        self._waiting_small: deque[SlicedReader] = deque()  # readers with little input wait for one turn only

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

    def wait(self, reader: SlicedReader, *, small: bool) -> None:
        """Call `read_slice` of a reader in a later turn; in the next one if it has little input."""
        (self._waiting_small if small else self._waiting).append(reader)

    def _next_turn(self) -> None:
        """Read one slice of each reader that waits, as far as the time of the turn allows."""
        self._began = 0.0
        for waiting, seconds in ((self._waiting_small, READ_SECONDS), (self._waiting, BACKLOG_SECONDS)):
            for _ in range(len(waiting)):
                if not self.try_slice(seconds):
                    break
                reader = waiting.popleft()
                try:
                    reader.read_slice()
                except Exception:  # a fault in one socket must not reach the others
                    logger.exception(FAULT, abort_faulty(reader, self._counts))


class SlicedReader(asyncio.Protocol):
    """A protocol that reads its input in slices.

    A subclass implements `_has_input`, `_read_slice` and `_slices_read`, and calls `read_on` when `_has_input` may have
    become true for another reason than new data.
    """

    __slots__ = ("_in_slice", "_paused", "_scheduler", "_transport", "_unread", "_waits")

    _transport: asyncio.Transport
    _unread: bytes | memoryview
    """Bytes that have arrived and are not parsed yet."""
    _waits: bool
    """Whether the rest is read in a later turn of the event loop."""
    _in_slice: bool
    """Whether a slice is being read, so that it does not begin another one."""
    _paused: bool
    """Whether the transport is paused."""

    def __init__(self, scheduler: ReadScheduler) -> None:
        self._scheduler = scheduler
        self._unread = b""
        self._waits = self._in_slice = self._paused = False

    def abort(self) -> None:
        """Close the socket at once, without writing what is buffered."""
        raise NotImplementedError

    def _has_input(self) -> bool:
        """Return whether there is something that may be parsed now."""
        raise NotImplementedError

    def _read_slice(self) -> None:
        """Parse a few kilobytes, of `_take` or of the protocol's own buffers."""
        raise NotImplementedError

    def _slices_read(self) -> None:
        """Go on after some slices: call `_pause` with whether the rest has to wait."""
        raise NotImplementedError

    def data_received(self, data: bytes) -> None:
        """Read new data, as far as the turn allows."""
        self._unread = bytes(self._unread) + data if self._unread else data
        self.read_on()

    def read_on(self) -> None:
        """Read what is buffered, as far as the turn allows."""
        if self._waits or self._in_slice:
            return
        scheduler = self._scheduler
        small, seconds = len(self._unread) <= SMALL, READ_SECONDS
        while self._has_input():
            if not scheduler.try_slice(seconds):
                self._waits = True
                scheduler.wait(self, small=small)
                break
            seconds = BACKLOG_SECONDS
            self._read_guarded()
        self._slices_read()

    def read_slice(self) -> None:
        """Read one slice of what is buffered. Called by the scheduler."""
        self._waits = False
        if self._has_input():
            self._read_guarded()
        if self._has_input():
            self._waits = True
            self._scheduler.wait(self, small=False)
        self._slices_read()

    def _read_guarded(self) -> None:
        self._in_slice = True
        try:
            self._read_slice()
        finally:
            self._in_slice = False

    def _pause(self, pause: bool) -> None:
        """Pause the transport, or resume it."""
        if pause is not self._paused and not self._transport.is_closing():
            self._paused = pause
            if pause:
                self._transport.pause_reading()
            else:
                self._transport.resume_reading()

    def _take(self, most: int) -> bytes | memoryview:
        """Return the next bytes that have arrived, at most so many, and forget them."""
        unread = self._unread
        if len(unread) <= most:
            self._unread = b""
            return unread
        view = memoryview(unread)
        self._unread = view[most:]
        return view[:most]
