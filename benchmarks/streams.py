"""Measure streams: `python -m benchmarks.streams`. A private Redis, one interface server and one worker.

- append: entries of 100 bytes a second, by one writer and by 100 writers of one process, as fast as they can.
- viewers: 1,000 WebSockets, 50 entries a second, beside the same messages to a group without keeping.
- catch-up: 1,000 WebSockets that read 1,000 kept entries.

CPU time is that of the servers and Redis, without writer and clients.
"""

import argparse
import asyncio
import json
import math
import selectors
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import asgibus
from asgibus.layers import ChannelLayer, open_layer
from asgibus.layers.settings import StreamLimits
from benchmarks.clients.connection import Connection
from benchmarks.processes import Server

SIZE = 100
VIEWERS = 1000
RATE = 50
WRITERS = 100
KEPT = 1000
HEAD = 2  # of a frame


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Have each WebSocket follow a stream, or join a group, by its path."""
    assert scope["type"] == "websocket"
    await receive()
    await send({"type": "websocket.accept"})
    connection = asgibus.connection(scope)
    kind, name = scope["path"].strip("/").split("/")
    if kind == "follow":
        await connection.follow(name, template="raw")
    else:
        await connection.group_add(name)
    await receive()


def text() -> str:
    """Return an entry, which begins with the time."""
    return f"{time.time():.6f}".ljust(SIZE)


def view(port: int, path: str, entries: int) -> None:
    """Open all sockets, read until each has so many entries, and print the waits."""
    sockets = [Connection(port) for _ in range(VIEWERS)]
    selector = selectors.DefaultSelector()
    began = time.time()
    for connection in sockets:
        connection.upgrade(path)
        connection.socket.setblocking(False)
        selector.register(connection.socket, selectors.EVENT_READ, [0, b""])
    sys.stdout.write("READY\n")
    sys.stdout.flush()
    waits: list[float] = []
    frame, unfinished = HEAD + SIZE, VIEWERS
    while unfinished:
        for key, _ in selector.select():
            state = key.data
            data = state[1] + key.fileobj.recv(1 << 20)  # type: ignore[union-attr]
            now, count = time.time(), len(data) // frame
            for place in range(count):
                begin = place * frame + HEAD
                waits.append(now - float(data[begin : begin + 17]))
            state[0] += count
            state[1] = data[count * frame :]
            if state[0] >= entries and count:
                unfinished -= 1
    waits.sort()
    found = {"p50": waits[len(waits) // 2], "p99": waits[math.ceil(len(waits) * 0.99) - 1], "all": time.time() - began}
    sys.stdout.write(json.dumps(found) + "\n")
    sys.stdout.flush()


class Bus:
    """The servers of a run."""

    def __init__(self, folder: Path) -> None:
        self.url = f"unix://{folder}/redis.sock"
        redis = ["redis-server", "--port", "0", "--unixsocket", f"{folder}/redis.sock", "--save", ""]
        self.redis = Server("redis", redis, folder / "redis.log", "[Rr]eady to accept")
        self.redis.wait_ready()
        layer = ["--layer", self.url]
        worker = [sys.executable, "-m", "asgibus.cli.worker", "benchmarks.streams:app", *layer]
        interface = [sys.executable, "-m", "asgibus.cli.interface", "--port", "0", "--ws-ping-interval", "3600", *layer]
        self.servers = [self.redis, Server("worker", worker, folder / "worker.log", "ready")]
        self.servers.append(
            Server("interface", interface, folder / "interface.log", r"listening on http://[^:]*:(\d+)")
        )
        self.servers[1].wait_ready()
        self.port = int(self.servers[2].wait_ready()[1])

    def cpu(self) -> float:
        """Return the CPU seconds of all servers so far."""
        return sum(server.precise_cpu() for server in self.servers)

    def stop(self) -> None:
        for server in reversed(self.servers):
            server.stop()


async def append(bus: Bus, layer: ChannelLayer, writers: int, seconds: float) -> None:
    """Measure entries a second."""

    async def write(number: int) -> int:
        count = 0
        async with layer.stream(f"append.{number}").writer() as out:
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                for _ in range(20):
                    await out.append(entry)
                count += 20
                await asyncio.sleep(0)
        return count

    entry = text()
    began, own, redis = time.monotonic(), time.process_time(), bus.redis.precise_cpu()
    count = sum(await asyncio.gather(*map(write, range(writers))))
    took = time.monotonic() - began
    own, redis = time.process_time() - own, bus.redis.precise_cpu() - redis
    report(f"append, {writers} writers", f"{count / took:,.0f} entries/s", f"{own / count * 1e6:.1f} us of the writer")
    report("", f"{redis / count * 1e6:.2f} us of Redis an entry")


async def view_while(
    bus: Bus, path: str, entries: int, work: Callable[[], Awaitable[object]] | None
) -> tuple[dict[str, float], float]:
    """Run `work` while all viewers read. Return the waits, and the CPU seconds of the servers.

    Without `work`, the handshakes are measured, too: the kept entries are read behind them.
    """
    arguments = ["-m", "benchmarks.streams", "--view", str(bus.port), path, str(entries)]
    client = await asyncio.create_subprocess_exec(sys.executable, *arguments, stdout=asyncio.subprocess.PIPE)
    assert client.stdout is not None
    before = bus.cpu()
    assert await client.stdout.readline() == b"READY\n"
    if work is not None:
        before = bus.cpu()
        await work()
    found = json.loads(await client.stdout.readline())
    after = bus.cpu()
    await client.wait()
    return found, after - before


async def viewers(bus: Bus, layer: ChannelLayer, seconds: float) -> None:
    """Measure viewers of a stream, and members of a group."""
    count = round(seconds * RATE)

    async def paced(send: Callable[[str], Awaitable[object]]) -> None:
        loop = asyncio.get_running_loop()
        begin = loop.time()
        for number in range(count):
            await asyncio.sleep(begin + number / RATE - loop.time())
            await send(text())

    async def write() -> None:
        async with layer.stream("live").writer() as out:
            await paced(out.append)

    def send(message: str) -> Awaitable[object]:
        return layer.group_send("room", {"type": "websocket.send", "text": message})

    for name, path, work in (("stream", "/follow/live", write), ("group", "/group/room", lambda: paced(send))):
        found, cpu = await view_while(bus, path, count, work)
        each = cpu / count / VIEWERS * 1e6
        waits = f"p50 {found['p50'] * 1000:.1f} ms, p99 {found['p99'] * 1000:.1f} ms"
        report(f"{VIEWERS} viewers of a {name}, {RATE}/s", f"{cpu / seconds * 100:.0f} % CPU", waits)
        report("", f"{each:.2f} us a delivery")


async def catch_up(bus: Bus, layer: ChannelLayer) -> None:
    """Measure viewers that read what is kept, with their handshakes."""
    async with layer.stream("kept", StreamLimits(entries=KEPT)).writer() as out:
        for _ in range(KEPT):
            await out.append(text())
        await out.flush()
        found, cpu = await view_while(bus, "/follow/kept", KEPT, None)
    report(f"catch-up of {VIEWERS} viewers, {KEPT} entries", f"{found['all']:.1f} s", f"{cpu:.1f} s of CPU")


def report(what: str, *figures: str) -> None:
    """Print a line of figures."""
    sys.stdout.write(f"{what:40} {'; '.join(figures)}\n")
    sys.stdout.flush()


async def run(seconds: float) -> None:
    """Run all measures, each for so many seconds."""
    with tempfile.TemporaryDirectory() as folder:
        bus = Bus(Path(folder))
        layer = open_layer(bus.url)
        try:
            for writers in (1, WRITERS):
                await append(bus, layer, writers, seconds)
            await viewers(bus, layer, seconds)
            await catch_up(bus, layer)
        finally:
            await layer.close()
            bus.stop()


def main() -> None:
    """Run the measures, or be the viewers of one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--view", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.view:
        port, path, entries = options.view
        view(int(port), path, int(entries))
    else:
        asyncio.run(run(options.seconds))


if __name__ == "__main__":
    main()
