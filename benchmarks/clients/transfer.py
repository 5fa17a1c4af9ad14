"""Large bodies: every connection uploads or downloads one, and begins again when it has the answer."""

import selectors
import time
from dataclasses import dataclass

from benchmarks.clients.connection import HOST, PATIENCE, ClientError, Connection
from benchmarks.clients.tally import Tally
from benchmarks.payloads import TRANSFER

MB = 1_000_000
AT_ONCE = 1024 * 1024
"""Bytes that are written or read with one call."""


@dataclass(frozen=True, slots=True)
class Transfer:
    """A request with its body, and the size of its response in bytes."""

    connections: list[Connection]
    request: bytes
    size: int

    def run(self, seconds: float) -> Tally:
        """Begin transfers for this many seconds, wait for the last of them, and return the bodies in MB."""
        clock = time.perf_counter
        buffer = bytearray(AT_ONCE)
        request = memoryview(self.request)
        unsent = dict.fromkeys(self.connections, 0)  # the position in the request from which on it is unsent
        transfers = 0
        cpu = time.process_time()
        begin = clock()
        end = begin + seconds
        with selectors.DefaultSelector() as selector:
            for connection in self.connections:
                selector.register(connection.socket, selectors.EVENT_WRITE, connection)
                connection.received = 0
            while unsent:
                if not (ready := selector.select(PATIENCE)):
                    raise ClientError(f"{len(unsent)} transfers did not end within {PATIENCE:g} s")
                for key, events in ready:
                    connection = key.data
                    if events & selectors.EVENT_WRITE:
                        at = unsent[connection]
                        unsent[connection] = at + connection.socket.send(request[at : at + AT_ONCE])
                        if unsent[connection] == len(request):
                            selector.modify(connection.socket, selectors.EVENT_READ, connection)
                        continue
                    count = connection.socket.recv_into(buffer)
                    connection.received += count
                    if count == 0 or connection.received > self.size:
                        raise ClientError("the server closed the connection or sent more than the answer")
                    if connection.received == self.size:
                        transfers += 1
                        if clock() < end:
                            connection.received = unsent[connection] = 0
                            selector.modify(connection.socket, selectors.EVENT_WRITE, connection)
                        else:
                            del unsent[connection]
        return Tally(transfers * TRANSFER / MB, clock() - begin, time.process_time() - cpu)


def upload(port: int, count: int) -> Transfer:
    """Open connections that upload bodies."""
    head = f"POST /upload HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {TRANSFER}\r\n\r\n"
    return transfer(port, count, head.encode() + bytes(TRANSFER))


def download(port: int, count: int) -> Transfer:
    """Open connections that download bodies."""
    return transfer(port, count, f"GET /download HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())


def transfer(port: int, count: int, request: bytes) -> Transfer:
    """Transfer one body on each connection, which defines the size of the responses."""
    connections, sizes = [], set()
    for _ in range(count):
        connection = Connection(port)
        connection.socket.sendall(request)
        sizes.add(connection.read_response())
        connection.socket.setblocking(False)
        connections.append(connection)
    if len(sizes) != 1:
        raise ClientError(f"responses to one request differ in size: {sorted(sizes)}")
    return Transfer(connections, request, sizes.pop())
