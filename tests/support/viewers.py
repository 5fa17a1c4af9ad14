"""A stream that is written, and its viewers, while a test starts and kills processes.

    with Writing(redis_url, "numbers") as writing, Viewers([interface], "numbers", websockets=["0"]) as viewers:
        ...  # faults
        viewers.wait_each_got(10)
        writing.end()
        viewers.wait_ended()
        viewers.report().assert_whole()

The entries are the numbers from 1. A viewer whose connection ends connects again, to the next interface server.
"""

import asyncio
import itertools
import json
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from asgibus.layers import open_layer
from support.deadline import HANG, wait_until
from support.event_source import interpret
from support.processes import Process

AGAIN_SECONDS = 0.1  # until a viewer connects again


class _Thread:
    """An event loop in a thread of its own."""

    def __init__(self, name: str) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(HANG)

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


class Writing:
    """A context manager: entering begins to write a stream, leaving ends it."""

    def __init__(self, layer: str, name: str, *, pause: float = 0.02) -> None:
        self._url = layer
        self._name = name
        self._pause = pause
        self._thread = _Thread("writing")
        self._ending = False
        self._written: Any = None
        self.offsets: list[str] = []

    def __enter__(self) -> Self:
        self._thread.start()
        self._written = asyncio.run_coroutine_threadsafe(self._write(), self._thread.loop)
        wait_until(lambda: self.offsets or self._written.done(), None, "the first entry")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()
        self._thread.stop()

    def end(self) -> None:
        """End the stream."""
        self._ending = True
        self._written.result(HANG)

    async def _write(self) -> None:
        layer = open_layer(self._url)
        async with layer.stream(self._name).writer() as out:
            while not self._ending:
                self.offsets.append(await out.append(len(self.offsets) + 1))
                await asyncio.sleep(self._pause)
        await layer.close()


class Viewer:
    """One client, which counts what it gets."""

    def __init__(self, after: str) -> None:
        self.offset = after
        self.last = int(after.rpartition("-")[2])
        self.count = self.lost = self.doubled = self.resets = self.connections = 0
        self.ended = False
        self.told_to_stop = False
        self.silence = 0.0
        self.heard_at = time.monotonic()

    def note(self, number: int, offset: str) -> None:
        now = time.monotonic()
        self.silence, self.heard_at = max(self.silence, now - self.heard_at), now
        self.count += 1
        if number <= self.last:
            self.doubled += 1
        else:
            self.lost += number - self.last - 1
            self.last = number
        self.offset = offset

    async def watch(self, port: int, name: str) -> None:
        """Follow the stream until the connection ends."""
        raise NotImplementedError


class SocketViewer(Viewer):
    """A client that follows by a WebSocket."""

    async def watch(self, port: int, name: str) -> None:
        async with connect(f"ws://127.0.0.1:{port}/{name}?after={self.offset}", proxy=None) as client:
            self.connections += 1
            async for text in client:
                message = json.loads(text)
                if "data" in message:
                    self.note(message["data"], message["offset"])
                elif "reset" in message:
                    self.resets += 1
                else:
                    self.ended = self.told_to_stop = "end" in message
                    return


class EventStreamViewer(Viewer):
    """A client that follows by server-sent events, as an EventSource does."""

    async def watch(self, port: int, name: str) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(f"GET /{name} HTTP/1.1\r\nHost: test\r\nLast-Event-ID: {self.offset}\r\n\r\n".encode())
            head = await reader.readuntil(b"\r\n\r\n")
            self.connections += 1
            self.told_to_stop = b" 204 " in head[:20]
            if b" 200 " not in head[:20]:
                return
            rest = b""
            while size := int(await reader.readuntil(b"\r\n"), 16):
                rest += (await reader.readexactly(size + 2))[:-2]
                whole, mark, rest = rest.rpartition(b"\n\n")
                for event in interpret(whole + mark).events:
                    self._on_event(event)
        finally:
            writer.close()

    def _on_event(self, event: Any) -> None:
        if event.type == "message":
            self.note(json.loads(event.data), event.last_event_id)
        elif event.type == "reset":
            self.resets += 1
        else:
            self.ended = event.type == "end"


@dataclass
class Report:
    """The counts of all viewers together."""

    viewers: int
    entries: int
    lost: int
    doubled: int
    resets: int
    connections: int
    silence: float
    """The longest time between two entries, in seconds."""

    def __str__(self) -> str:
        return (
            f"{self.viewers} viewers, {self.entries} entries, {self.lost} lost, "
            f"{self.doubled} doubled or out of order, {self.resets} resets; {self.connections} connections; "
            f"nothing came for {self.silence * 1000:.0f} ms (longest)"
        )

    def assert_whole(self) -> None:
        """Assert that each viewer has got every entry once and in order."""
        assert self.entries > 0, self
        assert self.lost == self.doubled == self.resets == 0, self


class Viewers:
    """A context manager: entering connects all viewers, leaving closes their connections."""

    def __init__(
        self,
        servers: Sequence[Process],
        name: str,
        *,
        websockets: Sequence[str] = (),
        event_streams: Sequence[str] = (),
    ) -> None:
        """Make viewers.

        Args:
            servers: The interface servers, in the order in which viewers try them. They begin with different ones.
            name: The name of the stream, which is the path of the app.
            websockets: The offset at which each viewer with a WebSocket begins.
            event_streams: The same for viewers with event streams.
        """
        self.all: list[Viewer] = [*map(SocketViewer, websockets), *map(EventStreamViewer, event_streams)]
        self._ports = [server.port for server in servers]
        self._name = name
        self._thread = _Thread("viewers")
        self._tasks: list[asyncio.Task[None]] = []

    def __enter__(self) -> Self:
        self._thread.start()
        self._thread.run(self._begin())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.run(self._end())
        self._thread.stop()

    def wait_each_got(self, count: int, timeout: float | None = None) -> None:
        """Wait until every viewer has got so many more entries."""
        aims = [(viewer, viewer.count + count) for viewer in self.all]
        wait_until(lambda: all(viewer.count >= aim for viewer, aim in aims), timeout, f"{count} more entries each")

    def wait_ended(self, timeout: float | None = None) -> None:
        """Wait until every viewer has got the end, and was told not to come back."""
        wait_until(lambda: all(each.ended and each.told_to_stop for each in self.all), timeout, "the end")

    def report(self) -> Report:
        """Return the results so far."""
        total: Callable[[str], int] = lambda name: sum(getattr(viewer, name) for viewer in self.all)  # noqa: E731
        return Report(
            viewers=len(self.all),
            entries=total("count"),
            lost=total("lost"),
            doubled=total("doubled"),
            resets=total("resets"),
            connections=total("connections"),
            silence=max(viewer.silence for viewer in self.all),
        )

    async def _begin(self) -> None:
        self._tasks = [asyncio.create_task(self._watch(*each)) for each in enumerate(self.all)]

    async def _end(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _watch(self, index: int, viewer: Viewer) -> None:
        for turn in itertools.count(index):
            port = self._ports[turn % len(self._ports)]
            with suppress(OSError, ConnectionClosed, InvalidHandshake, asyncio.IncompleteReadError):
                await viewer.watch(port, self._name)
            if viewer.told_to_stop:
                return
            await asyncio.sleep(AGAIN_SECONDS)
