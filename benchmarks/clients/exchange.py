"""Question and answer, as HTTP or WebSocket echo: every connection asks, waits for its answer, and asks again."""

import selectors
import time
from dataclasses import dataclass

from benchmarks.clients.connection import HOST, PATIENCE, ClientError, Connection, client_frame, server_frame
from benchmarks.clients.tally import Tally
from benchmarks.payloads import ECHO


@dataclass(frozen=True, slots=True)
class Exchange:
    """A question, and the size in bytes and the first bytes of its answer."""

    connections: list[Connection]
    question: bytes
    size: int
    start: bytes

    def run(self, seconds: float) -> Tally:
        """Ask for this many seconds, wait for the last answers, and return the latency of each."""
        question, size, start = self.question, self.size, self.start
        prefix = len(start)
        clock = time.perf_counter
        buffer = bytearray(65536)
        waits: list[float] = []
        cpu = time.process_time()
        begin = clock()
        end = begin + seconds
        with selectors.DefaultSelector() as selector:
            for connection in self.connections:
                selector.register(connection.socket, selectors.EVENT_READ, connection)
                connection.received = 0
                connection.sent_at = clock()
                connection.socket.send(question)
            waiting = len(self.connections)
            while waiting:
                if not (ready := selector.select(PATIENCE)):
                    raise ClientError(f"{waiting} answers did not come within {PATIENCE:g} s")
                for key, _ in ready:
                    connection = key.data
                    count = connection.socket.recv_into(buffer)
                    if connection.received == 0 and count >= prefix and buffer[:prefix] != start:
                        raise ClientError(f"unexpected answer: {bytes(buffer[:count])!r}")
                    connection.received += count
                    if connection.received == size:
                        now = clock()
                        waits.append(now - connection.sent_at)
                        if now < end:
                            connection.received = 0
                            connection.sent_at = now
                            connection.socket.send(question)
                        else:
                            waiting -= 1
                    elif count == 0 or connection.received > size:
                        raise ClientError("the server closed the connection or sent more than the answer")
        return Tally(len(waits), clock() - begin, time.process_time() - cpu, waits)


def http(port: int, count: int, path: str) -> Exchange:
    """Open keep-alive connections that ask for a page. The first answer on each defines the size of the others."""
    question = f"GET {path} HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode()
    connections, sizes = [], set()
    for _ in range(count):
        connection = Connection(port)
        connection.socket.sendall(question)
        sizes.add(connection.read_response())
        connection.socket.setblocking(False)
        connections.append(connection)
    if len(sizes) != 1:
        raise ClientError(f"answers to one question differ in size: {sorted(sizes)}")
    return Exchange(connections, question, sizes.pop(), b"HTTP/1.1 200 ")


def echo(port: int, count: int) -> Exchange:
    """Open WebSockets at `/ws` that send 100 bytes and get them back."""
    question, answer = client_frame(ECHO), server_frame(ECHO)
    connections = []
    for _ in range(count):
        connection = Connection(port)
        connection.upgrade("/ws")
        connection.socket.sendall(question)
        connection.expect(answer)
        connection.socket.setblocking(False)
        connections.append(connection)
    return Exchange(connections, question, len(answer), answer)
