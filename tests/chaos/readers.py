"""Many event streams, read at once, whose events are numbered from 1.

The readers live in a thread of their own, so that the test may start and kill processes meanwhile:

    with Readers(interface, "/numbers", count=100) as readers:
        ...  # faults
        readers.wait_each_got(5)
        readers.report().assert_whole()
"""

import asyncio
import threading
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from support.deadline import HANG, wait_until
from support.event_source import interpret
from support.processes import Process

AT_ONCE = 50
"""Connections that are opened at once."""


@dataclass
class Report:
    """The counts of all readers together."""

    streams: int
    events: int
    lost: int
    doubled: int
    cut: int
    """Chunks that ended in the middle of an event."""
    ended: int
    """Responses that ended."""
    silence: float
    """The longest time between two events of a stream, in seconds."""

    def __str__(self) -> str:
        return (
            f"{self.streams} event streams, {self.events} events, {self.lost} lost, {self.doubled} doubled, "
            f"{self.cut} cut; {self.ended} responses ended; nothing came for {self.silence * 1000:.0f} ms (longest)"
        )

    def assert_whole(self) -> None:
        """Assert that each reader has one response, with whole events, and every event once."""
        assert self.events > 0, self
        assert self.lost == self.doubled == self.cut == self.ended == 0, self


class Reader(asyncio.Protocol):
    """The client of one event stream."""

    def __init__(self, target: str) -> None:
        self.last = 0
        self.count = self.lost = self.doubled = self.cut = 0
        self.ended = False
        self.leaving = False
        self.silence = 0.0
        self._target = target
        self._at = time.monotonic()
        self._buffer = b""
        self._in_body = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(f"GET {self._target} HTTP/1.1\r\nHost: test\r\nAccept: text/event-stream\r\n\r\n".encode())

    def connection_lost(self, error: Exception | None) -> None:
        self.ended = self.ended or not self.leaving

    def leave(self) -> None:
        self.leaving = True
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self._in_body:
            head, mark, rest = self._buffer.partition(b"\r\n\r\n")
            if not mark:
                return
            self.ended = not head.startswith(b"HTTP/1.1 200 ")
            self._in_body, self._buffer = True, rest
        while True:
            length, mark, rest = self._buffer.partition(b"\r\n")
            size = int(length, 16) if mark else 0
            if not mark or len(rest) < size + 2:
                return
            if not size:
                self.ended = True
                return
            self._note(rest[:size])
            self._buffer = rest[size + 2 :]

    def _note(self, chunk: bytes) -> None:
        self.cut += not chunk.endswith((b"\n\n", b"\r\n\r\n"))
        now = time.monotonic()
        self.silence, self._at = max(self.silence, now - self._at), now
        for event in interpret(chunk).events:
            number = int(event.data.split()[-1])
            self.count += 1
            if number <= self.last:
                self.doubled += 1
            else:
                self.lost += number - self.last - 1
                self.last = number


class Readers:
    """A context manager: entering opens all streams, leaving closes them. See the module."""

    def __init__(self, server: Process, target: str, *, count: int) -> None:
        self.readers = [Reader(target) for _ in range(count)]
        self._server = server
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="readers", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._open(), self._loop).result(HANG)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(HANG)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def wait_each_got(self, count: int, timeout: float | None = None) -> None:
        """Wait until every reader has got so many more events."""
        aims = [(reader, reader.count + count) for reader in self.readers]
        wait_until(lambda: all(reader.count >= aim for reader, aim in aims), timeout, f"{count} more events each")

    def report(self) -> Report:
        """Return the results so far."""
        readers = self.readers
        return Report(
            streams=len(readers),
            events=sum(reader.count for reader in readers),
            lost=sum(reader.lost for reader in readers),
            doubled=sum(reader.doubled for reader in readers),
            cut=sum(reader.cut for reader in readers),
            ended=sum(reader.ended for reader in readers),
            silence=max(reader.silence for reader in readers),
        )

    async def _open(self) -> None:
        slots = asyncio.Semaphore(AT_ONCE)

        async def connect(reader: Reader) -> None:
            async with slots:
                await self._loop.create_connection(lambda: reader, "127.0.0.1", self._server.port)

        await asyncio.gather(*map(connect, self.readers))

    async def _close(self) -> None:
        for reader in self.readers:
            reader.leave()
