"""`python -m benchmarks.layers.ends END ROW PEER URL LOOP SOCKET`: one end of a measure, driven over stdin and stdout.

The reader prints its channels as JSON and a line of JSON for each number of messages to expect: when
the last of them came, and how many are missing or came twice. The sender gets the channels, then how many seconds to
send; it prints when it began, and how many messages it has sent since it started. SOCKET is the number of a socket that
joins the two: a byte in it confirms messages, so that what is unread stays within the window without the layer's help.
"""

import asyncio
import gc
import itertools
import json
import socket
import sys
import time
from contextlib import suppress
from typing import Any

from benchmarks.layers.rows import ROWS, Row, open_layer

GROUP = "everyone"
TEXT = "x" * 100
SUBSCRIBED = 0.5
"""Seconds for a reader that waits to be known in Redis: what is published before that is lost to pub/sub."""
PATIENCE = 10.0
"""Seconds without any message after which the reader waits no longer for those that are missing."""


class Tally:
    """Message numbers that the reader received, by channel."""

    def __init__(self, row: Row, confirm: socket.socket) -> None:
        self._seen: list[set[int]] = [set() for _ in range(row.members)]
        self._step = row.grant * row.members
        self._confirm = confirm
        self.received = 0
        self.doubled = 0
        self.last = 0.0
        self.expected = -1
        self.complete = asyncio.Event()

    def add(self, place: int, number: int) -> None:
        """Count a message that arrived on the channel with this index."""
        seen = self._seen[place]
        if number in seen:
            self.doubled += 1
            return
        seen.add(number)
        self.received += 1
        if self.received % self._step == 0:
            self._confirm.send(b".")
        self.last = time.monotonic()
        if self.received == self.expected:
            self.complete.set()

    async def wait(self, expected: int) -> dict[str, float]:
        """Wait until `expected` messages have arrived since the start, or no more arrive."""
        self.complete.clear()
        self.expected = expected
        if self.received == expected:
            self.complete.set()
        before = -1
        while not self.complete.is_set() and before != self.received:
            before = self.received
            with suppress(TimeoutError):
                await asyncio.wait_for(self.complete.wait(), PATIENCE)
        return {"ended": self.last, "lost": expected - self.received, "doubled": self.doubled}


class Credit:
    """Number of messages that may be sent until the reader confirms some."""

    def __init__(self, row: Row, confirmed: socket.socket) -> None:
        self._free = row.window
        self._grant = row.grant
        self._socket = confirmed
        self._more = asyncio.Event()
        asyncio.get_running_loop().add_reader(confirmed, self._read)

    def _read(self) -> None:
        self._free += self._grant * len(self._socket.recv(4096))
        self._more.set()

    async def take(self, until: float) -> bool:
        """Wait until one more may be sent; False if that is not before the end."""
        while self._free <= 0:
            self._more.clear()
            try:
                await asyncio.wait_for(self._more.wait(), until - time.monotonic())
            except TimeoutError:
                return False
        self._free -= 1
        return True


async def reader(row: Row, layer: Any, confirm: socket.socket) -> None:
    """Receive until stdin ends."""
    tally = Tally(row, confirm)
    channels = [await layer.new_channel() for _ in range(row.members)] if row.local else ["benchmark"]
    if row.members > 1:
        for channel in channels:
            await layer.group_add(GROUP, channel)

    async def read(place: int, channel: str) -> None:
        while True:
            message = await layer.receive(channel)
            if row.echo:
                await layer.send(message["reply"], message)
            tally.add(place, message["number"])

    async with asyncio.TaskGroup() as tasks:
        readers = [tasks.create_task(read(place, channel)) for place, channel in enumerate(channels)]
        await asyncio.sleep(SUBSCRIBED)
        write_line(channels)
        while line := await ask():
            write_line(await tally.wait(int(line)))
        for task in readers:
            task.cancel()


async def sender(row: Row, layer: Any, confirmed: socket.socket) -> None:
    """Send for the seconds that each line of stdin names, until stdin ends."""
    channels = json.loads(await ask())
    numbers = itertools.count()
    credit = Credit(row, confirmed)
    sent = 0

    async def send(until: float) -> None:
        nonlocal sent
        while time.monotonic() < until and await credit.take(until):
            message = {"type": "benchmark.message", "number": next(numbers), "text": TEXT}
            if row.members > 1:
                await layer.group_send(GROUP, message)
            else:
                await layer.send(channels[0], message)
            sent += 1

    back = (await layer.new_channel() if row.local else "benchmark.back") if row.echo else ""
    answer = asyncio.create_task(layer.receive(back)) if row.echo else None
    await asyncio.sleep(SUBSCRIBED)

    async def ping(until: float) -> None:
        nonlocal sent, answer
        assert answer is not None
        while time.monotonic() < until:
            number = next(numbers)
            message = {"type": "benchmark.message", "number": number, "text": TEXT, "reply": back}
            await layer.send(channels[0], message)
            sent += 1
            if (await answer)["number"] != number:
                raise ValueError("another answer than the one that was waited for")
            answer = asyncio.create_task(layer.receive(back))

    write_line("READY")
    while line := await ask():
        began = time.monotonic()
        async with asyncio.TaskGroup() as tasks:
            for _ in range(row.senders):
                tasks.create_task((ping if row.echo else send)(began + float(line)))
        write_line({"began": began, "expected": sent * row.members})
    if answer is not None:
        answer.cancel()


async def ask() -> str:
    """Return the next line of stdin."""
    line: str = await asyncio.to_thread(sys.stdin.readline)
    return line.strip()


def write_line(value: Any) -> None:
    """Write a line to stdout."""
    print(json.dumps(value), flush=True)


async def serve(end: str, row: Row, peer: str, url: str, descriptor: int) -> None:
    """Run one end, from the opening of its layer to the closing."""
    layer = open_layer(peer, url)
    gc.collect()
    gc.freeze()
    with socket.socket(fileno=descriptor) as other:
        other.setblocking(False)
        try:
            await (reader if end == "reader" else sender)(row, layer, other)
        finally:
            await (layer.close() if peer == "asgibus" else layer.flush())


def main() -> None:
    """Run one end in the event loop that the command line names."""
    end, row, peer, url, loop, descriptor = sys.argv[1:]
    factory = None
    if loop == "uvloop":
        import uvloop  # noqa: PLC0415 - whoever measures asyncio has no other loop in memory

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(serve(end, ROWS[row], peer, url, int(descriptor)))


if __name__ == "__main__":
    main()
