"""A TCP proxy between the servers and Redis that breaks connections in ways that Redis itself does not offer.

It runs in a thread. It knows a connection by the name that its client gave it with CLIENT SETNAME, so a fault can be
made for one kind alone: names end in `writer`, `mailbox`, `claims` and so on.
"""

import asyncio
import re
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self, TypeVar

from support.deadline import HANG

T = TypeVar("T")

SETNAME = re.compile(rb"SETNAME\r\n\$\d+\r\n([^\r\n]*)\r\n", re.IGNORECASE)
CHUNK = 65536


@dataclass(frozen=True, slots=True)
class _Cut:
    """A request at which a connection is reset."""

    pattern: re.Pattern[bytes]
    arrives: bool
    late: bool
    then: Callable[[], object]


class TcpProxy:
    """Passes bytes between `127.0.0.1:port` and `target`; a context manager.

    Faults apply to present and later connections whose name ends in `kind` ("" matches every one).
    """

    def __init__(self, target: tuple[str, int]) -> None:
        self.target = target
        self.port = 0
        self.cuts: Counter[str] = Counter()
        """The connections that were reset in the middle of a reply, counted by their name."""
        self._pairs: set[_Pair] = set()
        self._serving: set[asyncio.Task[None]] = set()
        self._armed: list[tuple[str, int]] = []
        self._before: list[tuple[bytes, Callable[[], object]]] = []
        self.requests_cut = 0
        """The number of connections that were reset at a request."""
        self._cut: _Cut | None = None
        self._arrival = asyncio.Event()
        self._silent: set[str] = set()
        self._held: set[str] = set()
        self._delays: dict[str, float] = {}
        self._free = asyncio.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="tcp proxy", daemon=True)
        self._listening = threading.Event()
        self._ended = asyncio.Event()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._listening.wait(HANG), "the proxy does not start"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join(10)

    # Faults. Each method returns when the fault is active.

    def cut_reply(self, kind: str, least: int = 2) -> None:
        """Pass half of the next reply of at least `least` bytes, then reset both sides (RST). Once per call."""
        self._do(lambda: self._armed.append((kind, least)))

    def cut_request(
        self, pattern: bytes, *, arrives: bool, late: bool = False, then: Callable[[], object] = lambda: None
    ) -> None:
        """Reset a connection once, at the next request that matches a regular expression.

        Args:
            pattern: The expression.
            arrives: Whether Redis gets the request. Its reply is dropped.
            late: Whether Redis gets the request only when `let_arrive` is called, long after the reset.
            then: Called when Redis has replied, in the thread of the proxy.
        """
        cut = _Cut(re.compile(pattern, re.DOTALL), arrives, late, then)
        self._do(lambda: setattr(self, "_cut", cut))

    def let_arrive(self) -> None:
        """Pass the request of a late cut to Redis."""
        self._do(self._arrival.set)

    def hold_replies(self, kind: str) -> None:
        """Hold back the replies to connections of this kind until `heal`."""
        self._do(lambda: self._held.add(kind))

    def before(self, request: bytes, call: Callable[[], object]) -> None:
        """Call a function once, in the thread of the proxy, before bytes that hold `request` are passed to Redis."""
        self._do(lambda: self._before.append((request, call)))

    def armed(self) -> int:
        """Return how many of the requested cuts have not happened yet."""
        return self._do(lambda: len(self._armed))

    def disarm(self) -> None:
        """Forget the cuts that have not happened."""
        self._do(self._armed.clear)

    def reset(self, kind: str = "") -> int:
        """Reset the connections of this kind in any state; return their number."""

        def reset() -> int:
            pairs = [pair for pair in self._pairs if pair.is_kind(kind)]
            for pair in pairs:
                pair.reset()
            return len(pairs)

        return self._do(reset)

    def blackhole(self, kind: str = "") -> None:
        """Pass no more bytes in either direction, and keep the connections open. New ones are accepted, too."""
        self._do(lambda: self._silent.add(kind))

    def delay(self, seconds: float, kind: str = "") -> None:
        """Delay the answers of Redis by `seconds`."""
        self._do(lambda: self._delays.update({kind: seconds}))

    def heal(self) -> None:
        """Pass all bytes at once again, beginning with those that a blackhole or a delay held back."""

        def heal() -> None:
            self._silent.clear()
            self._held.clear()
            self._delays.clear()
            self._armed.clear()
            free, self._free = self._free, asyncio.Event()
            free.set()

        self._do(heal)

    def names(self) -> list[str]:
        """Return the names of the open connections."""
        return self._do(lambda: sorted(pair.name for pair in self._pairs))

    def _do(self, what: Callable[[], T]) -> T:
        async def call() -> T:
            return what()

        return asyncio.run_coroutine_threadsafe(call(), self._loop).result(30)

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._listening.set()
        await self._ended.wait()
        server.close()
        for pair in self._pairs:
            pair.reset()
            for task in pair.passing:
                task.cancel()
        if self._serving:
            await asyncio.wait(self._serving)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)
        try:
            to_redis = await asyncio.open_connection(*self.target)
        except OSError:
            _reset(writer)
            return
        pair = _Pair((reader, writer), to_redis)
        self._pairs.add(pair)
        pair.passing = [asyncio.create_task(self._requests(pair)), asyncio.create_task(self._replies(pair))]
        await asyncio.wait(pair.passing, return_when=asyncio.FIRST_COMPLETED)
        for passing in pair.passing:  # one side has ended, and so does the other
            passing.cancel()
        await asyncio.wait(pair.passing)
        self._pairs.discard(pair)
        await pair.close()
        for passing in pair.passing:
            if not passing.cancelled() and (error := passing.exception()) and not isinstance(error, OSError):
                raise error

    async def _requests(self, pair: "_Pair") -> None:
        while data := await pair.client[0].read(CHUNK):
            if not pair.name and (match := SETNAME.search(data)):
                pair.name = match[1].decode()
            await self._passable(pair)
            for each in [each for each in self._before if each[0] in data]:
                self._before.remove(each)
                each[1]()
            if (cut := self._cut) is not None and cut.pattern.search(data):
                self._cut = None
                await self._cut_at(cut, pair, data)
                return
            pair.redis[1].write(data)
            await pair.redis[1].drain()

    async def _cut_at(self, cut: _Cut, pair: "_Pair", request: bytes) -> None:
        pair.dropped = asyncio.Event()
        if cut.late:
            _reset(pair.client[1])
            await self._arrival.wait()
        if cut.arrives:
            pair.redis[1].write(request)
            await pair.dropped.wait()
            cut.then()
        pair.reset()
        self.requests_cut += 1

    async def _replies(self, pair: "_Pair") -> None:
        while data := await pair.redis[0].read(CHUNK):
            if pair.dropped is not None:
                pair.dropped.set()
                continue
            await self._passable(pair)
            while any(pair.is_kind(kind) for kind in self._held):
                await self._free.wait()
            if delays := [seconds for kind, seconds in self._delays.items() if pair.is_kind(kind)]:
                with suppress(TimeoutError):
                    async with asyncio.timeout(max(delays)):
                        await self._free.wait()
            for armed in self._armed:
                if pair.is_kind(armed[0]) and len(data) >= armed[1]:
                    self._armed.remove(armed)
                    self.cuts[pair.name] += 1
                    pair.client[1].write(data[: len(data) // 2])
                    await pair.client[1].drain()
                    await asyncio.sleep(0.02)  # the half has to be read before the reset is seen
                    pair.reset()
                    return
            pair.client[1].write(data)
            await pair.client[1].drain()
        if pair.dropped is not None:
            pair.dropped.set()  # Redis has closed the connection
            await self._loop.create_future()  # until the other task has cut the request, and this one is cancelled

    async def _passable(self, pair: "_Pair") -> None:
        while any(pair.is_kind(kind) for kind in self._silent):
            await self._free.wait()


_Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class _Pair:
    """The two connections, with the client and the target, of one proxied connection."""

    def __init__(self, client: _Stream, redis: _Stream) -> None:
        self.client = client
        self.redis = redis
        self.name = ""
        self.dropped: asyncio.Event | None = None  # set when a reply is dropped after a cut
        self.passing: list[asyncio.Task[None]] = []

    def is_kind(self, kind: str) -> bool:
        return self.name.endswith(kind)

    def reset(self) -> None:
        _reset(self.client[1])
        _reset(self.redis[1])

    async def close(self) -> None:
        for _, writer in (self.client, self.redis):
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Break a connection with RST."""
    plain = writer.get_extra_info("socket")
    if plain is not None and plain.fileno() >= 0:
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
