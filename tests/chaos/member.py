"""One WebSocket of a crowd, which numbers its messages and records those of each sender."""

import asyncio
import json
import struct
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from support.websocket import CLOSE, PING, PONG, TEXT, close_frame, frame, handshake

if TYPE_CHECKING:
    from chaos.crowd import Crowd

ABNORMAL = 1006


class Numbers:
    """The numbers of one sender as one member received them, beginning with `expected`."""

    __slots__ = ("disordered", "doubled", "expected", "missing")

    def __init__(self, expected: int = 0) -> None:
        self.expected = expected
        self.doubled = self.disordered = 0
        self.missing: set[int] = set()

    def note(self, number: int) -> bool:
        """Count the number as seen; return whether this is the first time."""
        if number >= self.expected:
            self.missing.update(range(self.expected, number))
            self.expected = number + 1
            return True
        if number in self.missing:  # a later number arrived earlier
            self.missing.remove(number)
            self.disordered += 1
            return True
        self.doubled += 1
        return False

    def lost(self, sent: int) -> int:
        """Return how many of the numbers below `sent` have not arrived."""
        return len(self.missing) + max(0, sent - self.expected)


@dataclass(frozen=True)
class Takeover:
    """The first message of a member's own that another run of its app answered."""

    at: float
    attempt: int
    pid: int
    before: int
    """The pid of the run before."""


class Member(asyncio.Protocol):
    """One WebSocket of a crowd."""

    def __init__(self, crowd: "Crowd", number: int, target: str) -> None:
        loop = asyncio.get_running_loop()
        self.name = f"{crowd.label}{number}"
        self.sent = 0
        self.seen: dict[str, Numbers] = {}
        self.takeovers: list[Takeover] = []
        self.attempt = self.pid = 0
        self.backward = 0
        self.closed: tuple[int, str] | None = None
        self.closed_at = 0.0
        self.blocked = False
        self.opened: asyncio.Future[None] = loop.create_future()
        self.lost: asyncio.Future[None] = loop.create_future()
        self.answers: list[Any] = []
        self.waiting: dict[int, float] = {}
        self.leaving = False
        self._crowd = crowd
        self._target = target
        self._buffer = b""

    def __repr__(self) -> str:
        return f"<{self.name} sent {self.sent}, closed {self.closed}, run {self.attempt} in {self.pid}>"

    @property
    def open(self) -> bool:
        return self.closed is None

    @property
    def answered(self) -> int:
        """Return one more than the highest own number that was answered."""
        numbers = self.seen.get(self.name)
        return numbers.expected if numbers else 0

    def send(self) -> None:
        """Send the next number."""
        self.waiting[self.sent] = time.monotonic()
        self._transport.write(frame(TEXT, b"%d %s" % (self.sent, self._crowd.padding)))
        self.sent += 1

    def send_text(self, text: str) -> None:
        """Send something that is not counted."""
        self._transport.write(frame(TEXT, text.encode()))

    def leave(self) -> None:
        """Close with 1000."""
        self.leaving = True
        if self.open:
            self._transport.write(close_frame(1000))

    def abort(self) -> None:
        self.leaving = True
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(handshake(self._target))

    def pause_writing(self) -> None:
        self.blocked = True

    def resume_writing(self) -> None:
        self.blocked = False

    def connection_lost(self, error: Exception | None) -> None:
        self._close(ABNORMAL, repr(error))
        if not self.opened.done():
            self.opened.set_exception(ConnectionError(f"the handshake of {self.name} failed: {self._buffer[:80]!r}"))
        self.lost.set_result(None)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self.opened.done():
            head, mark, rest = self._buffer.partition(b"\r\n\r\n")
            if not mark:
                return
            if not head.startswith(b"HTTP/1.1 101 "):
                self._transport.abort()
                return
            self._buffer = rest
            self.opened.set_result(None)
        buffer, start = self._buffer, 0
        while len(buffer) >= start + 2:
            length, begin = buffer[start + 1], start + 2
            if length == 126:
                if len(buffer) < begin + 2:
                    break
                (length,), begin = struct.unpack_from("!H", buffer, begin), begin + 2
            if len(buffer) < begin + length:
                break
            self._frame(buffer[start] & 0x0F, buffer[begin : begin + length])
            start = begin + length
        self._buffer = buffer[start:]

    def _frame(self, opcode: int, payload: bytes) -> None:
        if opcode == TEXT:
            self._text(payload.decode())
        elif opcode == PING:
            self._transport.write(frame(PONG, payload))
        elif opcode == CLOSE:
            (code,) = struct.unpack_from("!H", payload)
            self._close(code, payload[2:].decode())
            self._transport.write(close_frame(code))
            self._transport.close()

    def _close(self, code: int, reason: str) -> None:
        if self.closed is None:
            self.closed = (code, reason)
            self.closed_at = time.monotonic()

    def _text(self, text: str) -> None:
        if text.startswith("!"):
            self.answers.append(json.loads(text[1:]))
            return
        *sender, number, attempt, pid = text.split(" ")
        name = sender[0] if sender else self.name
        sequence = self.seen.get(name)
        if sequence is None:
            sequence = self.seen[name] = Numbers()
        first = sequence.note(int(number))
        self._crowd.received += 1
        if name == self.name:
            self._note_answer(int(number), int(attempt), int(pid), first)

    def _note_answer(self, number: int, attempt: int, pid: int, first: bool) -> None:
        now = time.monotonic()
        if first:
            self._crowd.waits.append(now - self.waiting.pop(number))
        if attempt > self.attempt:
            if self.attempt:
                self.takeovers.append(Takeover(now, attempt, pid, self.pid))
            self.attempt, self.pid = attempt, pid
        elif (attempt < self.attempt or pid != self.pid) and (first or not self._crowd.rooms):
            self.backward += 1  # a repeated broadcast may come from a superseded run
