"""Order, no loss, no duplicate, per connection and direction, with several servers of each kind under load."""

import asyncio
import logging
import random
import struct
import time
from collections import deque
from collections.abc import Iterator
from functools import partial

import pytest

from support.processes import Process
from support.servers import Servers, serving
from support.websocket import BINARY, CLOSE, close_frame, frame, handshake

figures = logging.getLogger("figures")  # shown by `pytest -rP --log-level=info`

SECONDS = 1.5
SOCKETS = 300
REQUESTERS = 20
AHEAD = 6
"""Messages that a client sends before it has the answers."""


@pytest.fixture
def servers(request: pytest.FixtureRequest) -> Iterator[Servers]:
    with serving(request, "end_to_end.load_app:app", layer="redis", interfaces=2, workers=2) as servers:
        yield servers


class Talker(asyncio.Protocol):
    """A WebSocket that sends numbered messages of many sizes until `stop` is set, and checks every answer."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._buffer = b""
        self._sent: deque[bytes] = deque()
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.sent = self.answered = self.extras = 0
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.workers: set[int] = set()
        self.stopping = False
        self.trouble = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(handshake("/"))

    def connection_lost(self, error: Exception | None) -> None:
        if not self.opened.done():
            self.opened.set_exception(ConnectionError("the handshake failed"))
        if self._sent and not self.trouble:
            self.trouble = f"{len(self._sent)} messages were not answered ({error!r})"
        self.ended.set_result(None)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self.opened.done():
            head, mark, rest = self._buffer.partition(b"\r\n\r\n")
            if not mark:
                return
            assert head.startswith(b"HTTP/1.1 101 "), head
            self._buffer = rest
            self.opened.set_result(None)
            return
        while (parsed := self._parse()) is not None:
            self._check(*parsed)
        self.send()

    def _parse(self) -> tuple[int, bytes] | None:
        buffer = self._buffer
        if len(buffer) < 2:
            return None
        length, start = buffer[1], 2
        if length == 126:
            if len(buffer) < 4:
                return None
            (length,), start = struct.unpack_from("!H", buffer, 2), 4
        if len(buffer) < start + length:
            return None
        self._buffer = buffer[start + length :]
        return buffer[0] & 0x0F, buffer[start : start + length]

    def _check(self, opcode: int, payload: bytes) -> None:
        if opcode == CLOSE:
            if payload[:2] != b"\x03\xe8":
                self.trouble = f"closed: {payload!r}"
            return
        assert opcode == BINARY
        if self.answered % 16 == 0 and payload.startswith(b"%d more from " % self.answered):
            self.extras += 1
            self.workers.add(int(payload.rpartition(b" ")[2]))
            return
        expected = self._sent.popleft() if self._sent else None
        if payload != expected and not self.trouble:
            self.trouble = f"{payload[:30]!r} instead of {expected and expected[:30]!r}"
        self.answered += 1

    def send(self) -> None:
        """Send the messages that may be sent now."""
        if self.trouble or (self.stopping and not self._sent):
            self._transport.write(close_frame(1000))
            return
        while len(self._sent) < AHEAD and not self.stopping:
            message = b"%d %s" % (self.sent, self._random.randbytes(self._random.choice((0, 10, 100, 3000))))
            self.sent += 1
            self._sent.append(message)
            self._transport.write(frame(BINARY, message))


async def request(server: Process, seed: int, until: float) -> int:
    """Post bodies of many sizes over one connection, check the echo of each, and return their number."""
    source = random.Random(seed)
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    count = 0
    while time.monotonic() < until:
        body = b"%d-%d " % (seed, count) + source.randbytes(source.choice((0, 100, 200_000)))
        writer.write(b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 "), head
        assert await reader.readexactly(len(body)) == body
        count += 1
    writer.close()
    await writer.wait_closed()
    return count


async def load(servers: Servers) -> tuple[int, int]:
    loop = asyncio.get_running_loop()
    talkers = []
    for number in range(SOCKETS):
        port = servers.interfaces[number % len(servers.interfaces)].port
        _, talker = await loop.create_connection(partial(Talker, number), "127.0.0.1", port)
        talkers.append(talker)
        await talker.opened
    until = time.monotonic() + SECONDS
    for talker in talkers:
        talker.send()
    async with asyncio.TaskGroup() as tasks:
        requesters = [
            tasks.create_task(request(servers.interfaces[number % len(servers.interfaces)], number, until))
            for number in range(REQUESTERS)
        ]
        await asyncio.sleep(until - time.monotonic())
        for talker in talkers:
            talker.stopping = True
        async with asyncio.timeout(30):
            await asyncio.gather(*(talker.ended for talker in talkers))
    trouble = [f"{number}: {talker.trouble}" for number, talker in enumerate(talkers) if talker.trouble]
    assert not trouble, trouble[:5]
    for talker in talkers:
        assert talker.sent == talker.answered >= 16
        assert talker.extras == talker.answered // 16
        assert len(talker.workers) == 1, "a connection stays with its worker"
    assert len(set.union(*(talker.workers for talker in talkers))) == len(servers.workers)
    return sum(talker.answered for talker in talkers), sum(task.result() for task in requesters)


@pytest.mark.redis
def test_order_and_number_under_load(servers: Servers) -> None:
    messages, requests = asyncio.run(load(servers))
    figures.info("%d messages over %d sockets and %d requests in %g s", messages, SOCKETS, requests, SECONDS)
    assert requests >= REQUESTERS
    assert not [line for process in servers.all for line in process.log().splitlines() if "ERROR" in line]
