"""Many WebSockets that number their messages, and count lost, doubled and disordered ones.

A crowd lives in a thread of its own, so that the test may start and kill processes meanwhile:

    with Crowd(interface, "/echo", sockets=100, rate=200) as crowd:
        crowd.begin()
        ...  # faults
        report = crowd.finish()

In `/echo` each member expects an answer to each of its messages; in `/room` each expects every message of every member
of its room, its own included.
"""

import asyncio
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import urlencode

from chaos.member import Member, Numbers, Takeover
from chaos.scale import RATE, SOCKETS
from support.deadline import HANG, wait_until
from support.processes import Process

T = TypeVar("T")

AT_ONCE = 50
"""Handshakes under way at once."""
OPEN_TIMEOUT = 30.0
STEP = 0.01


@dataclass
class Report:
    """Results of a crowd. Messages are counted only for the members whose sockets were still open."""

    sockets: int
    sent: int
    received: int
    lost: int
    doubled: int
    disordered: int
    backward: int
    """Messages of a run that was not the newest: two runs served a socket at once."""
    takeovers: int
    closes: Counter[int]
    spread: float
    """Seconds from the first close to the last."""
    slowest: float
    """The longest that a sender waited for the first answer to a message, in seconds."""
    median: float
    missing: list[str] = field(default_factory=list, repr=False)

    def __str__(self) -> str:
        closes = ", ".join(f"{count} with {code}" for code, count in sorted(self.closes.items())) or "none"
        text = (
            f"{self.sockets} sockets, {self.sent} messages sent, {self.received} received, {self.lost} lost, "
            f"{self.doubled} doubled, {self.disordered} out of order, {self.backward} of an older run; "
            f"closes: {closes}; {self.takeovers} takeovers; answer latency {self.median * 1000:.1f} ms (median), "
            f"{self.slowest * 1000:.0f} ms (longest)"
        )
        if len(self.closes):
            text += f"; closes spread over {self.spread:.2f} s"
        return "; ".join([text, *self.missing[:5]])

    def assert_whole(self, *, doubles: bool = False) -> None:
        """Assert that no socket closed, no message was lost or out of order, and no two runs were active at once.

        Messages may arrive twice only in tests that kill workers.
        """
        assert not self.closes, self
        assert self.sent > 0, self
        assert self.disordered == self.backward == 0, self
        assert self.lost == 0, self
        assert doubles or self.doubled == 0, self


class Crowd:
    """A context manager: entering opens all sockets, leaving closes them. See the module."""

    def __init__(
        self,
        servers: Process | Sequence[Process],
        path: str,
        *,
        sockets: int,
        rate: float,
        room_size: int = 10,
        size: int = 0,
        label: str = "",
        send_buffer: int | None = None,
        **query: object,
    ) -> None:
        """`rate`: messages per second of all together. `size`: bytes of padding in each.

        `query`: more of the query string of each. `send_buffer`: the kernel's, for clients that feel it early when the
        server does not read.
        """
        self.label = label or path.strip("/")
        self.members: list[Member] = []
        self.padding = b"x" * size
        self.waits: list[float] = []
        self.received = 0
        self.skipped = 0
        """Messages that were due while their sender's socket was blocked, and were not sent."""
        self._servers = [servers] if isinstance(servers, Process) else list(servers)
        self.rooms = path == "/room"
        self._path = path
        self._sockets = sockets
        self._rate = rate
        self.interval = sockets / rate
        """Seconds between two messages of a member."""
        self._room_size = room_size
        self._send_buffer = send_buffer
        self._query = query
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"crowd {self.label}", daemon=True)
        self._pump: asyncio.Task[None] | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        try:
            self._call(self._open(), OPEN_TIMEOUT + self._sockets / 100)
            if self.rooms:
                self.probe(OPEN_TIMEOUT)  # all have joined before the first message: an app answers after the join
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._call(self._close(), 30)
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    # Methods that a test calls, from its own thread.

    def begin(self) -> None:
        """Send numbered messages at the rate, member after member, until `pause` or `finish`."""
        assert self._pump is None
        self._pump = self._call(self._start_pump())

    def pause(self) -> None:
        """Stop sending."""
        pump, self._pump = self._pump, None
        if pump is not None:
            self._call(self._stop_pump(pump))

    def finish(self, timeout: float = HANG) -> Report:
        """Stop sending, wait until every open member has all messages or the time is over, and return the results."""
        self.pause()
        deadline = time.monotonic() + timeout
        while self._call(self._incomplete()) and time.monotonic() < deadline:
            time.sleep(0.05)  # between two looks, until the deadline
        return self.report()

    def report(self) -> Report:
        """Return the results so far."""
        return self._call(self._report(), 30)

    def probe(self, timeout: float | None = None) -> list[dict[str, Any]]:
        """Ask the app of every open member for its state.

        Fails with AssertionError if one does not answer."""
        questions = self._call(self._ask(), 30)
        unanswered = partial(self._unanswered, questions)
        wait_until(lambda: not unanswered(), timeout, f"an answer to a question, from {unanswered()[:3]}")
        return [member.answers[-1] for member, _ in questions if member.open]

    def wait_answered(self, count: int, timeout: float | None = None) -> None:
        """Wait until `count` more own messages have come back."""
        aim = len(self.waits) + count
        wait_until(lambda: len(self.waits) >= aim, timeout, f"{count} more answers for {self.label}")

    def wait_each_answered(self, timeout: float | None = None) -> None:
        """Wait until every open member got an answer to a message that it sent after this call.

        `timeout`, for a promised time, bounds the wait for the answers; the time in which each member sends a
        message is added.
        """
        marks = [(member, member.sent) for member in self.members]
        wait_until(
            lambda: all(not member.open or member.answered > sent for member, sent in marks),
            None if timeout is None else timeout + self.interval,
            f"an answer for each of {self.label}",
        )

    def forget(self) -> None:
        """Count no message that was lost, doubled or disordered so far."""
        self._call(self._forget())

    def closed(self) -> list[Member]:
        """Return the members whose sockets were closed on them."""
        return [member for member in self.members if member.closed is not None and not member.leaving]

    def of_pid(self, pid: int) -> list[Member]:
        """Return the open members whose last answer was sent by that process."""
        return [member for member in self.members if member.open and member.pid == pid]

    def takeovers(self, since: float = 0.0) -> list[Takeover]:
        """Return the takeovers in the order in which the clients saw them."""
        takeovers = [takeover for member in self.members for takeover in member.takeovers if takeover.at >= since]
        return sorted(takeovers, key=lambda takeover: takeover.at)

    # In the crowd's thread.

    def _call(self, coroutine: Coroutine[Any, Any, T], timeout: float = HANG) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(timeout)

    async def _open(self) -> None:
        slots = asyncio.Semaphore(AT_ONCE)

        async def connect(number: int) -> Member:
            query = dict(self._query) | {"name": f"{self.label}{number}"}
            if self.rooms:
                query["room"] = f"{self.label}.{number // self._room_size}"
            target = f"{self._path}?{urlencode(query)}"
            port = self._servers[number % len(self._servers)].port
            async with slots:
                sock = socket.socket()
                sock.setblocking(False)
                if self._send_buffer is not None:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self._send_buffer)
                await self._loop.sock_connect(sock, ("127.0.0.1", port))
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                _, member = await self._loop.create_connection(partial(Member, self, number, target), sock=sock)
                await member.opened
            return member

        self.members = await asyncio.gather(*map(connect, range(self._sockets)))

    async def _start_pump(self) -> asyncio.Task[None]:
        return asyncio.create_task(self._send())

    async def _stop_pump(self, pump: asyncio.Task[None]) -> None:
        pump.cancel()
        await asyncio.wait([pump])
        if not pump.cancelled():
            pump.result()

    async def _send(self) -> None:
        begun, count = time.monotonic(), 0
        while True:
            due = int((time.monotonic() - begun) * self._rate)
            for number in range(count, due):
                member = self.members[number % len(self.members)]
                if member.blocked:
                    self.skipped += 1
                elif member.open:
                    member.send()
            count = due
            await asyncio.sleep(STEP)

    async def _close(self) -> None:
        if self._pump is not None:
            self._pump.cancel()
        for member in self.members:
            member.leave()
        if self.members:
            _, late = await asyncio.wait([member.lost for member in self.members], timeout=5)
            for member in self.members:
                if member.lost in late:
                    member.abort()
            await asyncio.wait([member.lost for member in self.members])
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _ask(self) -> list[tuple[Member, int]]:
        questions = []
        for member in self.members:
            if member.open:
                questions.append((member, len(member.answers) + 1))
                member.send_text("?")
        return questions

    @staticmethod
    def _unanswered(questions: list[tuple[Member, int]]) -> list[Member]:
        return [member for member, count in questions if member.open and len(member.answers) < count]

    async def _incomplete(self) -> bool:
        return any(True for _ in self._expectations())

    def _expectations(self) -> list[tuple[Member, Member, int]]:
        """Return (member, sender, count) for all messages that open members still miss."""
        missed = []
        for index, member in enumerate(self.members):
            if not member.open:
                continue
            room = index - index % self._room_size
            senders = self.members[room : room + self._room_size] if self.rooms else [member]
            for sender in senders:
                sequence = member.seen.get(sender.name)
                if sender.open and (lost := sequence.lost(sender.sent) if sequence else sender.sent):
                    missed.append((member, sender, lost))
        return missed

    async def _forget(self) -> None:
        for member in self.members:
            for sender in self.members:
                if sender.name in member.seen:
                    member.seen[sender.name] = Numbers(sender.sent)

    async def _report(self) -> Report:
        closed = self.closed()
        times = [member.closed_at for member in closed]
        missed = self._expectations()
        sequences = [sequence for member in self.members for sequence in member.seen.values()]
        waits = sorted(self.waits)
        return Report(
            sockets=len(self.members),
            sent=sum(member.sent for member in self.members),
            received=self.received,
            lost=sum(lost for _, _, lost in missed),
            doubled=sum(sequence.doubled for sequence in sequences),
            disordered=sum(sequence.disordered for sequence in sequences),
            backward=sum(member.backward for member in self.members),
            takeovers=sum(len(member.takeovers) for member in self.members),
            closes=Counter(member.closed[0] for member in closed if member.closed is not None),
            spread=max(times) - min(times) if times else 0.0,
            slowest=waits[-1] if waits else 0.0,
            median=waits[len(waits) // 2] if waits else 0.0,
            missing=[
                f"{member.name} misses {count} of {sender.sent} of {sender.name}" for member, sender, count in missed
            ],
        )


def alive(pid: int) -> bool:
    """Return whether a process with that id exists."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@contextmanager
def echo_and_room(interfaces: Process | Sequence[Process]) -> Iterator[tuple[Crowd, Crowd]]:
    """Provide two crowds, each with half of the sockets, that send and have had their first answers."""
    half, rate = SOCKETS // 2, RATE / 2
    with (
        Crowd(interfaces, "/echo", sockets=half, rate=rate) as echo,
        Crowd(interfaces, "/room", sockets=half, rate=rate) as room,
    ):
        for crowd in (echo, room):
            crowd.begin()
            crowd.wait_each_answered()
        yield echo, room
