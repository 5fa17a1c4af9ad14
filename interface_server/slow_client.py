"""Limits on slow clients: for sending a request body, and for reading what was written to them."""

from __future__ import annotations

import asyncio
import fcntl
import math
import sys
import termios
from contextlib import suppress

BODY_GRACE_SECONDS = 5.0  # a body may pause this long before its rate counts
STALL_SECONDS = 60.0  # a client that reads nothing for this long, while data waits for it, is disconnected


class SlowClientGuard:
    """Measures how fast one client sends and reads. It has no clock: pass the time, about once a second."""

    __slots__ = ("_body_since", "_received_before", "_unread", "_unread_since")

    def __init__(self) -> None:
        self._body_since = math.inf
        self._received_before = 0
        self._unread = 0
        self._unread_since = 0.0

    def expect_body(self, now: float, received: int) -> None:
        """Begin to measure the rate of a request body.

        Args:
            now: The time in seconds.
            received: Bytes of body that the socket had received before.
        """
        self._body_since, self._received_before = now, received

    def expect_nothing(self) -> None:
        """Stop measuring: the client waits for "100 Continue"."""
        self._body_since = math.inf

    def body_too_slow(self, now: float, received: int, min_rate: int) -> bool:
        """Return whether the request body arrives with fewer than `min_rate` bytes per second."""
        seconds = now - self._body_since
        return seconds > BODY_GRACE_SECONDS and received - self._received_before < seconds * min_rate

    def check_stall(self, now: float, unread: int) -> bool:
        """Remember how much the client has not read, and return whether it has read nothing for `STALL_SECONDS`.

        Args:
            now: The time in seconds.
            unread: The result of `unread_bytes`.
        """
        if not unread or unread != self._unread:
            self._unread, self._unread_since = unread, now
            return False
        return now - self._unread_since > STALL_SECONDS


def unread_bytes(transport: asyncio.WriteTransport) -> int:
    """Return how many bytes were written and not received by the client.

    If the transport's buffer is not empty, bytes in the kernel's buffer count too, where the kernel tells: it accepts
    more only when a third of several megabytes is free, so a slow client would look like one that reads nothing.
    """
    waiting = transport.get_write_buffer_size()
    if waiting:
        with suppress(OSError):
            descriptor = transport.get_extra_info("socket").fileno()
            waiting += int.from_bytes(fcntl.ioctl(descriptor, termios.TIOCOUTQ, bytes(4)), sys.byteorder)
    return waiting
