"""Clients that come and go: each is a user of its own, who is present while its WebSocket is open."""

import asyncio
import itertools
import random
import threading
import time
from collections.abc import Coroutine, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

from websockets.asyncio.client import ClientConnection, connect

from support.deadline import HANG
from support.processes import Process

T = TypeVar("T")

AT_ONCE = 50
"""Handshakes under way at once."""


class Churn:
    """A context manager in a thread of its own: entering opens `members` WebSockets, leaving closes all."""

    def __init__(self, servers: Sequence[Process], path: str, members: int) -> None:
        self.opened = 0
        self.slowest = 0.0
        """The longest time from a handshake to being present, in seconds."""
        self._urls = itertools.cycle(f"{each.ws_url}{path}?quiet=1&user=" for each in servers)
        self._members = members
        self._open: dict[str, ClientConnection] = {}
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

    def run(self, rate: int, seconds: float) -> None:
        """Close and open WebSockets: `rate` per second of each."""
        self._call(self._run(rate, seconds), HANG + 3 * seconds)

    def _call(self, coroutine: Coroutine[Any, Any, T], timeout: float) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(timeout)

    async def _run(self, rate: int, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (began := time.monotonic()) < end:
            await asyncio.gather(self._remove(rate // 10), self._add(rate // 10))
            await asyncio.sleep(max(0.0, began + 0.1 - time.monotonic()))

    async def _add(self, count: int) -> None:
        await asyncio.gather(*(self._add_one() for _ in range(count)))

    async def _add_one(self) -> None:
        self.opened += 1
        user = f"user{self.opened}"
        async with self._slots:
            began = time.monotonic()
            client = await connect(next(self._urls) + user, compression=None, ping_interval=None, proxy=None)
            assert await client.recv() == '["ready"]'
            self.slowest = max(self.slowest, time.monotonic() - began)
        self._open[user] = client

    async def _remove(self, count: int) -> None:
        users = random.sample(list(self._open), min(count, len(self._open)))
        await asyncio.gather(*(self._open.pop(user).close() for user in users))
