"""Opening of WebSockets: many at once, as fast as the server answers, and all kept open."""

import selectors
import time
from collections import Counter
from dataclasses import dataclass, field

from benchmarks.clients.connection import (
    PATIENCE,
    ClientError,
    Connection,
    check_handshake,
    client_frame,
    handshake,
    server_frame,
)
from benchmarks.clients.tally import Tally
from benchmarks.payloads import ECHO, PID_DIGITS

WARM = 100
"""Sockets that are open before `connect`, so that what a server sets up once is not counted as memory of a socket."""
HEAD_END = b"\r\n\r\n"


@dataclass(slots=True)
class Opening:
    """WebSockets to open at a path, `at_once` of them in flight. `greeting` bytes are awaited behind each handshake."""

    port: int
    path: str
    count: int
    at_once: int
    greeting: int = 0
    connections: list[Connection] = field(default_factory=list)

    def run(self, seconds: float) -> Tally:
        """Open all sockets, without a time limit. They stay open as long as this object exists."""
        cpu, begin = time.process_time(), time.perf_counter()
        greetings = self.open(self.count)
        tally = Tally(self.count, time.perf_counter() - begin, time.process_time() - cpu)
        if self.greeting:
            return Tally(tally.count, tally.seconds, tally.client_cpu, fullest=max(greetings.values()) / self.count)
        return tally

    def open(self, count: int) -> Counter[bytes]:
        """Open `count` more and return how often each greeting came."""
        request = handshake(self.path)
        greetings: Counter[bytes] = Counter()
        received: dict[Connection, bytes] = {}
        with selectors.DefaultSelector() as selector:
            while sum(greetings.values()) < count:
                while len(received) < self.at_once and len(received) + sum(greetings.values()) < count:
                    connection = Connection(self.port)
                    connection.socket.sendall(request)
                    connection.socket.setblocking(False)
                    selector.register(connection.socket, selectors.EVENT_READ, connection)
                    received[connection] = b""
                if not (ready := selector.select(PATIENCE)):
                    raise ClientError(f"{len(received)} handshakes were not answered within {PATIENCE:g} s")
                for key, _ in ready:
                    connection = key.data
                    if not (data := connection.socket.recv(4096)):
                        raise ClientError(f"closed by the server after {received[connection]!r}")
                    received[connection] += data
                    head, end, greeting = received[connection].partition(HEAD_END)
                    if end and len(greeting) >= self.greeting:
                        check_handshake(head + end)
                        greetings[greeting] += 1
                        del received[connection]
                        selector.unregister(connection.socket)
                        connection.socket.settimeout(PATIENCE)
                        self.connections.append(connection)
        return greetings

    def check(self) -> None:
        """Let every socket echo once. Raises ClientError when one is no longer served."""
        question, answer = client_frame(ECHO), server_frame(ECHO)
        for connection in self.connections:
            connection.socket.sendall(question)
            connection.expect(answer)


def connect(port: int, count: int, at_once: int) -> Opening:
    """Prepare WebSockets at `/ws`, and open the first few of them."""
    sockets = Opening(port, "/ws", count, at_once)
    sockets.open(WARM)
    return sockets


def even(port: int, count: int) -> Opening:
    """Prepare WebSockets at `/pid`, all to be opened at once, whose greeting names the process that serves them."""
    return Opening(port, "/pid", count, count, greeting=len(server_frame("0" * PID_DIGITS)))
