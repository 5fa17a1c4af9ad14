"""Idle sockets: open them, keep them open, and check at the end that they still are."""

import time
from dataclasses import dataclass, field

from benchmarks.clients.connection import Connection, client_frame, server_frame
from benchmarks.clients.tally import Tally
from benchmarks.payloads import ECHO

WARM = 100
"""Sockets that are open before the measure, so that what a server sets up once is not counted."""


@dataclass(frozen=True, slots=True)
class Idle:
    """Idle sockets of a measurement: their number and the port to open them at."""

    port: int
    count: int
    connections: list[Connection] = field(default_factory=list)

    def run(self, seconds: float) -> Tally:
        """Open all sockets, without a time limit. They stay open as long as this object exists."""
        cpu, begin = time.process_time(), time.perf_counter()
        self.open(self.count)
        return Tally(self.count, time.perf_counter() - begin, time.process_time() - cpu, [])

    def check(self) -> None:
        """Let every socket echo once.

        Raises ClientError when one is no longer served.
        """
        question, answer = client_frame(ECHO), server_frame(ECHO)
        for connection in self.connections:
            connection.socket.sendall(question)
            connection.expect(answer)

    def open(self, count: int) -> None:
        """Open `count` more."""
        for _ in range(count):
            connection = Connection(self.port)
            connection.upgrade("/ws")
            self.connections.append(connection)


def idle(port: int, count: int) -> Idle:
    """Prepare WebSockets at `/ws`, and open the first few of them."""
    sockets = Idle(port, count)
    sockets.open(WARM)
    return sockets
