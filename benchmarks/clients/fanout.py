"""Fan-out: the first socket triggers a broadcast, every socket receives it, at most `window` are under way."""

import selectors
import time
from collections import deque
from dataclasses import dataclass

from benchmarks.clients.connection import PATIENCE, ClientError, Connection, client_frame, server_frame
from benchmarks.clients.tally import Tally
from benchmarks.payloads import BROADCAST, JOINED, TRIGGER


@dataclass(frozen=True, slots=True)
class FanOut:
    """The members of the group, and the number of broadcasts that may be under way."""

    members: list[Connection]
    window: int

    def run(self, seconds: float) -> Tally:
        """Broadcast for this many seconds and wait for the last delivery.

        A broadcast counts as done when as many bytes have come as all broadcasts up to it make. The tally counts
        deliveries; its waits are from trigger to last delivery.
        """
        members = self.members
        trigger = client_frame(TRIGGER)
        frame = len(server_frame(BROADCAST))
        step = frame * len(members)
        clock = time.perf_counter
        buffer = bytearray(65536)
        waits: list[float] = []
        sent_at: deque[float] = deque()
        total, target, sent = 0, step, 0
        cpu = time.process_time()
        begin = clock()
        end = begin + seconds
        with selectors.DefaultSelector() as selector:
            for member in members:
                selector.register(member.socket, selectors.EVENT_READ, member)
                member.received = 0
            for _ in range(self.window):
                members[0].socket.send(trigger)
                sent_at.append(clock())
                sent += 1
            while sent_at:
                if not (ready := selector.select(PATIENCE)):
                    raise ClientError(f"{sent * len(members) - total // frame} deliveries did not come")
                for key, _ in ready:
                    member = key.data
                    count = member.socket.recv_into(buffer)
                    if count == 0:
                        raise ClientError("a member was dropped")
                    member.received += count
                    total += count
                while total >= target:
                    now = clock()
                    target += step
                    waits.append(now - sent_at.popleft())
                    if now < end:
                        members[0].socket.send(trigger)
                        sent_at.append(clock())
                        sent += 1
        elapsed = clock() - begin
        if any(member.received != sent * frame for member in members):
            raise ClientError("some members received more, some less")
        return Tally(sent * len(members), elapsed, time.process_time() - cpu, waits)


def fanout(port: int, count: int, window: int) -> FanOut:
    """Open sockets at `/fanout`, all in the group, and check that each receives one broadcast, byte by byte."""
    joined, broadcast = server_frame(JOINED), server_frame(BROADCAST)
    members = []
    for _ in range(count):
        member = Connection(port)
        member.upgrade("/fanout")
        member.expect(joined)
        members.append(member)
    members[0].socket.sendall(client_frame(TRIGGER))
    for member in members:
        member.expect(broadcast)
        member.socket.setblocking(False)
    return FanOut(members, window)
