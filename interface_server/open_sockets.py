"""The open sockets of a server: their limit, their deadlines, and their end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator

import anyio

from asgibus.interface_server.terminator import FAULT, Holder, abort_faulty
from asgibus.protocol.counted_log import CountedLog
from asgibus.protocol.pacing import staggered

logger = logging.getLogger("asgibus.interface")

TOO_MANY = "too many connections"
TOO_MANY_TEXT = "a connection was rejected: %d sockets are open, and --max-connections is %d"


class OpenSockets:
    """Every open socket, by its `Holder`.

    A holder that raises is removed and aborted, and not called again.
    """

    def __init__(self, most: int, log: CountedLog) -> None:
        """Make an empty set of sockets.

        Args:
            most: How many sockets may be open.
            log: Counts and logs faults, and sockets beyond the limit.
        """
        self._most = most
        self._log = log
        self._holders: set[Holder] = set()
        self._empty = anyio.Event()
        self._draining = False

    def __len__(self) -> int:
        return len(self._holders)

    def __contains__(self, holder: object) -> bool:
        return holder in self._holders

    def __iter__(self) -> Iterator[Holder]:
        return iter([*self._holders])

    def admit(self, holder: Holder) -> bool:
        """Add a socket that was accepted, and return False if there are too many."""
        self.register(holder)
        if len(self._holders) > self._most:
            self._log.count(TOO_MANY, TOO_MANY_TEXT, len(self), self._most)
            return False
        return True

    def register(self, holder: Holder) -> None:
        """Add a socket that another protocol has handed over."""
        self._holders.add(holder)
        if self._draining:  # its TLS handshake, or its first request, is complete only now
            asyncio.get_running_loop().call_soon(self._shut_down, holder)

    def forget(self, holder: Holder) -> None:
        """Remove a socket that was closed, or handed over."""
        self._holders.discard(holder)
        if not self._holders:
            self._empty.set()

    def expire(self, now: float) -> None:
        """Call every holder whose deadline has passed."""
        for holder in [each for each in self._holders if each.deadline <= now]:
            try:
                holder.expire(now)
            except Exception:  # a fault in one socket must not reach the others
                logger.exception(FAULT, self._abort_faulty(holder))

    async def drain(self, seconds: float, late: Callable[[Holder], bool]) -> None:
        """Shut down every socket.

        Args:
            seconds: The time over which sockets for which `late` is true are shut down, one after another. The others
                are shut down at once.
            late: Whether the client of a socket is going to connect again, so that all at once would be a burst.
        """
        self._draining = True
        later = [holder for holder in self._holders if late(holder)]
        for holder in self._holders.difference(later):
            self._shut_down(holder)
        start = anyio.current_time()
        for offset, holder in staggered(later, seconds):
            await anyio.sleep_until(start + offset)
            self._shut_down(holder)

    async def wait_closed(self, seconds: float) -> None:
        """Wait until every socket is closed, but no longer than that."""
        with anyio.move_on_after(seconds):
            while self._holders:
                self._empty = anyio.Event()
                await self._empty.wait()

    def abort(self) -> None:
        """Abort every socket."""
        for holder in list(self._holders):
            try:
                holder.abort()
            except Exception:  # a fault in one socket must not reach the others
                logger.exception(FAULT, self._abort_faulty(holder))

    def _shut_down(self, holder: Holder) -> None:
        if holder not in self._holders:  # closed meanwhile, or another protocol has the socket
            return
        try:
            holder.shut_down()
        except Exception:  # a fault in one socket must not reach the others
            logger.exception(FAULT, self._abort_faulty(holder))

    def _abort_faulty(self, holder: Holder) -> str:
        self.forget(holder)
        return abort_faulty(holder, self._log.counts)
