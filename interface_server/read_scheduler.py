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

REST_SECONDS = 0.004  # of a turn of the event loop, for what sockets have brought in earlier turns
READ_SECONDS = 0.01  # of a turn, for all reading
SMALL = 4 * 1024  # bytes: a socket that has brought no more is read before those that have


class Turns:
    """Shares the time of each turn of the event loop among the sockets that have something to be read."""

    def __init__(self, loop: asyncio.AbstractEventLoop, counts: Counter[str]) -> None:
        self._loop = loop
        self._counts = counts
        self._began = 0.0  # 0.0: nothing was read in this turn yet
        self._waiting: deque[SlicedReader] = deque()
        self._small: deque[SlicedReader] = deque()  # those that have brought little wait for one turn only

    def over(self, share: float) -> bool:
        """Return whether that many seconds of the current turn have passed since the first reading in it."""
        if not self._began:
            self._began = perf_counter()
            self._loop.call_soon(self._next)
            return False
        return perf_counter() - self._began >= share

    def wait(self, reader: SlicedReader, *, small: bool) -> None:
        """Call `read_slice` of a reader in a later turn; if it has little to read, in the next one."""
        (self._small if small else self._waiting).append(reader)

    def _next(self) -> None:
        """Begin a turn with one slice of each reader that waits, as far as the time allows."""
        self._began = 0.0
        for waiting, share in ((self._small, READ_SECONDS), (self._waiting, REST_SECONDS)):
            for _ in range(len(waiting)):
                if self.over(share):
                    break
                reader = waiting.popleft()
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
        small, share = len(self._unread) <= SMALL, READ_SECONDS
        while self._more():
            if turns.over(share):
                self._waits = True
                turns.wait(self, small=small)
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
            self._server.turns.wait(self, small=False)
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
