"""A process with one place on the bus: URL, prefix, role. `peers` starts it for tests that kill and pause it.

It takes orders as lines of JSON, answers them, and reports each event of its handler with its kind and time.
"""

import asyncio
import ctypes
import json
import sys
import time
from collections.abc import Sequence
from typing import Any

from asgibus.layers import Bus, Claim, Handler, RedisChannelLayer
from asgibus.layers.contract import Frame
from asgibus.layers.frames import DEAD, FIRST_PROTOCOL_KIND
from support.lease_times import shorten_if_requested

KIND = FIRST_PROTOCOL_KIND


class Place(Handler):
    """Handler of the process on the bus, and the orders that it executes."""

    def __init__(self, layer: RedisChannelLayer) -> None:
        self._layer = layer
        self._claiming: asyncio.Task[None] | None = None
        self._listening: asyncio.Task[None] | None = None
        self._claims: list[Claim] = []

    # The handler.

    def batch(self, sender: str, frames: Sequence[Frame]) -> None:
        for frame in frames:
            if frame[0] == DEAD:
                tell("dead", frame[1])
            else:
                tell("frame", frame[1:])

    def undelivered(self, mailbox: str) -> None:
        tell("undelivered", mailbox)

    def interrupted(self) -> None:
        tell("interrupted", None)

    def orphaned(self, claim: Claim) -> None:
        self._claims.append(claim)
        tell("orphaned", claim.entry)

    # Orders.

    async def _listen(self, group: str) -> str:
        """Return a process-local channel in a group, and a task that reports its messages."""
        channel = await self._layer.new_channel()
        await self._layer.group_add(group, channel)

        async def receive() -> None:
            while True:
                tell("message", await self._layer.receive(channel))

        self._listening = asyncio.create_task(receive())
        return channel

    async def obey(self, bus: Bus, what: str, *values: Any) -> str | int | None:
        """Execute an order and return the answer."""
        if what == "open":
            return bus.mailbox
        if what == "post":
            mailbox, count = values
            for number in range(count):
                bus.post(mailbox, (KIND, number))
            await bus.drain()
        elif what == "join":
            await bus.join_group(*values)
        elif what == "block":
            (seconds,) = values
            until = time.monotonic() + seconds
            while time.monotonic() < until:  # blocks the event loop, not the other threads
                pass
        elif what == "hold":
            (seconds,) = values
            ctypes.PyDLL(None).usleep(round(seconds * 1e6))  # holds the interpreter lock, so no thread runs
        elif what == "local":
            return await self._listen(*values)
        elif what == "group_send":
            await self._layer.group_send(*values)
        elif what == "claim":
            self._claiming = asyncio.create_task(self._claim(bus, *values))
        elif what == "counts":
            return self._layer.counts[values[0]]
        elif what == "done":
            while self._claims:
                bus.done(self._claims.pop())
            await bus.drain()
        else:
            raise ValueError(what)
        return None

    async def end(self, bus: Bus) -> None:
        """Stop claiming."""
        bus.stop_claiming()
        if self._listening is not None:
            self._listening.cancel()
        if self._claiming is not None:
            await self._claiming

    async def _claim(self, bus: Bus, channel: str) -> None:
        while claims := await bus.claim([channel], 10):
            self._claims += claims
            for claim in claims:
                tell("claimed", claim.entry)


def tell(what: str, value: Any) -> None:
    """Write a line for the test."""
    sys.stdout.write(json.dumps((what, value, time.monotonic())) + "\n")
    sys.stdout.flush()


async def main(url: str, prefix: str, role: str) -> None:
    layer = RedisChannelLayer(url, prefix=prefix)
    place = Place(layer)
    async with layer.bus(role, place) as bus:
        while line := await asyncio.to_thread(sys.stdin.readline):
            tell("answer", await place.obey(bus, *json.loads(line)))
        await place.end(bus)
    await layer.close()


if __name__ == "__main__":
    shorten_if_requested()
    asyncio.run(main(*sys.argv[1:]))
