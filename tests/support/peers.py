"""Users of a bus: in a process that a test may kill and pause, or in the process of the test."""

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from asgibus.layers import Bus, RedisChannelLayer
from support.bus import Recorder
from support.lease_times import BEAT, LEASE
from support.processes import environment

NOTICED = LEASE + BEAT
"""Seconds within which all processes know of a death, with the fixture `short_leases`."""
SLACK = 1.5
"""Seconds more for an event that is promised within a beat, on a busy machine."""


class Peer:
    """A bus user in a process of its own. It posts `(KIND, n)`, numbered from 0 by each order."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._answers: asyncio.Queue[Any] = asyncio.Queue()
        self.mailbox = ""
        self.events: list[tuple[str, Any, float]] = []
        """Reports of the handler of the process: kind, value, and time by the monotonic clock."""

    async def read(self) -> None:
        """Read the reports of the process until it ends."""
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            what, value, at = json.loads(line)
            if what == "answer":
                self._answers.put_nowait(value)
            else:
                self.events.append((what, value, at))

    def all(self, what: str) -> list[Any]:
        """Return all events of one kind at its handler: `frame`, `dead`, `undelivered`, `interrupted`,
        `claimed`, `orphaned`."""
        return [value for each, value, _ in self.events if each == what]

    def when(self, what: str) -> float:
        """Return the time of the first report of that kind, 0.0 if there is none."""
        return next((at for each, _, at in self.events if each == what), 0.0)

    async def do(self, what: str, *values: Any) -> Any:
        """Send an order to the process and wait for the answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([what, *values]).encode() + b"\n")
        return await asyncio.wait_for(self._answers.get(), 30)

    def signal(self, number: signal.Signals) -> float:
        """Send a signal to the process. Return the time."""
        os.kill(self._process.pid, number)
        return time.monotonic()

    async def kill(self) -> float:
        """Send SIGKILL, and return the time of the signal."""
        killed = self.signal(signal.SIGKILL)
        await self._process.wait()
        return killed

    async def close(self) -> None:
        """Leave the bus and end the process, if it still runs."""
        assert self._process.stdin is not None
        if self._process.returncode is None:
            self._process.stdin.close()
            assert await asyncio.wait_for(self._process.wait(), 30) == 0


@asynccontextmanager
async def peer(url: str, prefix: str, role: str = "peer") -> AsyncIterator[Peer]:
    """Provide a process on the bus while the context lasts."""
    pipe = asyncio.subprocess.PIPE
    command = (sys.executable, "-P", "-m", "support.peer_program", url, prefix, role)
    process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, env=environment())
    new = Peer(process)
    reading = asyncio.create_task(new.read())
    try:
        new.mailbox = await new.do("open")
        yield new
        await new.close()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        await reading


class Place:
    """A bus user in the process of the test, with its layer and handler."""

    def __init__(self, layer: RedisChannelLayer, bus: Bus, handler: Recorder) -> None:
        self.layer = layer
        self.bus = bus
        self.mailbox = bus.mailbox
        self.handler = handler


@asynccontextmanager
async def place(url: str, prefix: str, **options: Any) -> AsyncIterator[Place]:
    """Provide a place on the bus while the context lasts, of a layer of its own with these options."""
    layer, handler = RedisChannelLayer(url, prefix=prefix, **options), Recorder()
    async with layer.bus("place", handler) as bus:
        yield Place(layer, bus, handler)
    await layer.close()
