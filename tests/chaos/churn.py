"""Clients that come and go: each is a user of its own, who is present while its WebSocket is open.

They write and read bytes, at a fixed rate however long the answers take: a client library would take more of the
machine than the servers. They answer no pings.
"""

import asyncio
import itertools
import random
import threading
import time
from collections.abc import Coroutine, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

from support.deadline import HANG
from support.processes import Process
from support.websocket import close_frame, handshake

T = TypeVar("T")

AT_ONCE = 200
"""Handshakes under way at once."""
TICK = 0.02
"""Seconds between two looks for what is due."""

Client = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Churn:
    """A context manager in a thread of its own: entering opens `members` WebSockets, leaving closes all."""

    def __init__(self, servers: Sequence[Process], path: str, members: int) -> None:
        self.opened = 0
        self.slowest = 0.0
        """The longest time from a handshake to being present, in seconds."""
        self._ports = itertools.cycle(each.port for each in servers)
        self._path = path
        self._members = members
        self._open: dict[str, Client] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="churn", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._slots = asyncio.Semaphore(AT_ONCE)
        try:
            self._call(self._add(self._members), HANG + self._members / 20)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._call(self._remove(len(self._open)), HANG + self._members / 20)
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def users(self) -> dict[str, int]:
        """Return who is there, each with one connection."""
        return dict.fromkeys(self._open, 1)

    def run(self, rate: int, seconds: float) -> float:
        """Close and open WebSockets: `rate` per second of each. Return how many per second were done at the end."""
        began = time.monotonic()
        count = self._call(self._run(rate, seconds), HANG + 3 * seconds)
        return count / (time.monotonic() - began)

    def _call(self, coroutine: Coroutine[Any, Any, T], timeout: float) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(timeout)

    async def _run(self, rate: int, seconds: float) -> int:
        began = time.monotonic()
        count = 0
        async with asyncio.TaskGroup() as clients:
            while (elapsed := time.monotonic() - began) < seconds:
                due = round(elapsed * rate)
                clients.create_task(self._remove(due - count))
                for _ in range(due - count):
                    clients.create_task(self._add_one())
                count = due
                await asyncio.sleep(TICK)
        return count

    async def _add(self, count: int) -> None:
        await asyncio.gather(*(self._add_one() for _ in range(count)))

    async def _add_one(self) -> None:
        self.opened += 1
        user = f"user{self.opened}"
        async with self._slots:
            began = time.monotonic()
            reader, writer = await asyncio.open_connection("127.0.0.1", next(self._ports))
            writer.write(handshake(f"{self._path}?quiet=1&user={user}"))
            await reader.readuntil(b'["ready"]')
            self.slowest = max(self.slowest, time.monotonic() - began)
        self._open[user] = reader, writer

    async def _remove(self, count: int) -> None:
        users = random.sample(list(self._open), min(count, len(self._open)))
        await asyncio.gather(*(self._close(*self._open.pop(user)) for user in users))

    async def _close(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(close_frame(1000))
        await reader.read()
        writer.close()
        await writer.wait_closed()
