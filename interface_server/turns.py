"""Reading in slices: what one client sends may not take the event loop from the others."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from time import perf_counter
from typing import TYPE_CHECKING

from asgibus.interface_server.terminator import FAULT, cut

if TYPE_CHECKING:
    from asgibus.interface_server.server import Server

logger = logging.getLogger("asgibus.interface")

REST_SECONDS = 0.008  # of a turn of the event loop, for what sockets have brought in earlier turns
READ_SECONDS = 0.02  # of a turn, for all reading


class Turns:
    """Shares the time of each turn of the event loop among the sockets that have something to be read."""

    def __init__(self, loop: asyncio.AbstractEventLoop, counts: Counter[str]) -> None:
        self._loop = loop
        self._counts = counts
        self._began = 0.0  # 0.0: nothing was read in this turn yet
        self._waiting: deque[SlicedReader] = deque()

    def over(self, share: float) -> bool:
        """Return whether that many seconds of the current turn have passed since the first reading in it."""
        if not self._began:
            self._began = perf_counter()
            self._loop.call_soon(self._next)
            return False
        return perf_counter() - self._began >= share

    def wait(self, reader: SlicedReader) -> None:
        """Call `read_slice` of a reader in a later turn."""
        self._waiting.append(reader)

    def _next(self) -> None:
        """Begin a turn with one slice of each reader that waits, as far as the time allows."""
        self._began = 0.0
        for _ in range(len(self._waiting)):
            if self.over(REST_SECONDS):
                break
            reader = self._waiting.popleft()
            try:
                reader.read_slice()
            except Exception:  # one socket's fault is no reason to lose the others
                logger.exception(FAULT, cut(reader, self._counts))


class SlicedReader(asyncio.Protocol):
    """A protocol whose input is read in slices.

    A subclass says with `_more` whether something may be read now, and reads a little of it with `_read_slice`. What
    may not be read yet is kept; `_slices_read` then pauses the transport.
    """

    __slots__ = ("_in_slice", "_server", "_unread", "_waits")

    _server: Server
    _unread: bytes | memoryview
    """Bytes that have come and are not read yet."""
    _waits: bool
    """Whether the rest is to be read in a later turn of the event loop."""
    _in_slice: bool

    def __init__(self, server: Server) -> None:
        self._server = server
        self._unread = b""
        self._waits = self._in_slice = False

    def abort(self) -> None:
        """See `Terminator`."""
        raise NotImplementedError

    def _more(self) -> bool:
        """Return whether something has come that may be read now. When that changes, `read_on` is to be called."""
        raise NotImplementedError

    def _read_slice(self) -> None:
        """Read a little of what has come."""
        raise NotImplementedError

    def _slices_read(self) -> None:
        """Go on after some slices: pause or resume the transport, as `_unread` and `_waits` demand."""
        raise NotImplementedError

    def data_received(self, data: bytes) -> None:
        """Read what has come, as far as the turn allows."""
        self._unread = bytes(self._unread) + data if self._unread else data
        self.read_on()

    def read_on(self) -> None:
        """Read what is kept, as far as the turn allows."""
        if self._waits or self._in_slice:
            return
        turns = self._server.turns
        share = READ_SECONDS
        while self._more():
            if turns.over(share):
                self._waits = True
                turns.wait(self)
                break
            share = REST_SECONDS
            self._read_guarded()
        self._slices_read()

    def read_slice(self) -> None:
        """Read one slice of what is kept. For `Turns`, which has waited for it."""
        self._waits = False
        if self._more():
            self._read_guarded()
        if self._more():
            self._waits = True
            self._server.turns.wait(self)
        self._slices_read()

    def _read_guarded(self) -> None:
        self._in_slice = True
        try:
            self._read_slice()
        finally:
            self._in_slice = False

    def _take(self, most: int) -> bytes | memoryview:
        """Take the next bytes that have come, at most so many."""
        unread = self._unread
        if len(unread) <= most:
            self._unread = b""
            return unread
        view = memoryview(unread)
        self._unread = view[most:]
        return view[:most]
