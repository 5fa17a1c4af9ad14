"""Many event streams that count, and what their clients got."""

import re
import selectors
import socket
import threading
import time
from types import TracebackType
from typing import Self

from support.deadline import HANG
from support.processes import Process

EVENT = re.compile(rb"^data: (\d+)$", re.MULTILINE)


class Listener:
    """The client of one event stream of the chaos app."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), HANG)
        self.socket.sendall(b"GET /events HTTP/1.1\r\nHost: test\r\n\r\n")
        self.socket.setblocking(False)
        self.received = b""
        self.closed = False
        self.heard_at = time.monotonic()
        self.longest = 0.0

    def read(self) -> None:
        """Read what has arrived."""
        data = self.socket.recv(65536)
        now = time.monotonic()
        self.longest = max(self.longest, now - self.heard_at)
        self.heard_at = now
        self.closed = not data
        self.received += data

    @property
    def numbers(self) -> list[int]:
        """Return the numbers of the events."""
        return [int(number) for number in EVENT.findall(self.received)]


class Listeners:
    """A context manager: entering opens all event streams, leaving closes them."""

    def __init__(self, server: Process, count: int) -> None:
        self.all = [Listener(server.port) for _ in range(count)]
        self._ending = False
        self._thread = threading.Thread(target=self._read, name="listeners", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending = True
        self._thread.join()
        for each in self.all:
            each.socket.close()

    def assert_whole(self) -> None:
        """Assert that no stream was closed, and that no event is missing, twice or out of order."""
        for each in self.all:
            assert not each.closed
            assert each.numbers == list(range(1, len(each.numbers) + 1))
            assert each.numbers

    @property
    def longest(self) -> float:
        """Return the longest time for which a client heard nothing, in seconds."""
        return max(each.longest for each in self.all)

    def _read(self) -> None:
        with selectors.DefaultSelector() as selector:
            for each in self.all:
                selector.register(each.socket, selectors.EVENT_READ, each)
            while not self._ending:
                for key, _ in selector.select(0.1):
                    key.data.read()
                    if key.data.closed:
                        selector.unregister(key.fileobj)
