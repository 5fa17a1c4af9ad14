"""How slow a client may be: with the body of its request, and with reading what is written to it."""

from __future__ import annotations

import asyncio
import fcntl
import math
import sys
import termios
from contextlib import suppress

BODY_GRACE_SECONDS = 5.0  # a body may pause this long before its rate counts
STALL_SECONDS = 60.0  # a client that reads nothing for this long while data waits for it is dropped


class ClientPace:
    """Watches one client. It has no clock: each question says what time it is. Ask about once a second."""

    __slots__ = ("_body_since", "_received_before", "_waiting", "_waiting_since")

    def __init__(self) -> None:
        self._body_since = math.inf
        self._received_before = 0
        self._waiting = 0
        self._waiting_since = 0.0

    def expect_body(self, now: float, received: int) -> None:
        """From now on the client is to send its body; `received` bytes came before."""
        self._body_since, self._received_before = now, received

    def expect_nothing(self) -> None:
        """The client waits for us to ask for its body."""
        self._body_since = math.inf

    def body_too_slow(self, now: float, received: int, min_rate: int) -> bool:
        """Whether the client sends its body with fewer than `min_rate` bytes a second."""
        seconds = now - self._body_since
        return seconds > BODY_GRACE_SECONDS and received - self._received_before < seconds * min_rate

    def stalled(self, now: float, waiting: int) -> bool:
        """Whether the client has read nothing of the bytes that wait in its write buffer for too long."""
        if not waiting or waiting != self._waiting:
            self._waiting, self._waiting_since = waiting, now
            return False
        return now - self._waiting_since > STALL_SECONDS


def waiting_bytes(transport: asyncio.WriteTransport) -> int:
    """How much of what was written the client has not taken.

    If our own buffer holds something, what the kernel holds counts too, where it tells: it asks for more only when a
    third of megabytes is gone, so that a slow client would look like a stalled one.
    """
    waiting = transport.get_write_buffer_size()
    if waiting:
        with suppress(OSError):
            descriptor = transport.get_extra_info("socket").fileno()
            waiting += int.from_bytes(fcntl.ioctl(descriptor, termios.TIOCOUTQ, bytes(4)), sys.byteorder)
    return waiting
