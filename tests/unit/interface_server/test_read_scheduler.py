"""Sockets are read in slices, turn by turn of the event loop."""

import asyncio
from collections import Counter
from collections.abc import Callable

import pytest

from asgibus.interface_server import read_scheduler as module
from asgibus.interface_server.read_scheduler import READ_SECONDS, SMALL, InputBuffer, ReadScheduler

SLICE = 1000


class Loop:
    """An event loop that the test runs step by step; only readers advance its clock."""

    def __init__(self) -> None:
        self.now = 1.0
        self._soon: list[Callable[[], None]] = []

    def call_soon(self, callback: Callable[[], None]) -> None:
        self._soon.append(callback)

    def turn(self) -> None:
        soon, self._soon = self._soon, []
        for callback in soon:
            callback()


class Reader:
    """A reader of slices, each of which takes `cost` seconds."""

    def __init__(self, name: str, scheduler: ReadScheduler, loop: Loop, order: list[str], cost: float) -> None:
        self.input = InputBuffer(asyncio.Transport())
        self.scheduler = scheduler
        self.name, self.loop, self.order, self.cost = name, loop, order, cost
        self.aborted = False

    def data_received(self, data: bytes) -> None:
        self.input.add(data)
        self.scheduler.read(self)

    def has_input(self) -> bool:
        return bool(self.input.unread)

    def read_slice(self) -> None:
        if self.input.take(SLICE) == b"raise":
            raise RuntimeError("on purpose")
        self.order.append(self.name)
        self.loop.now += self.cost

    def slices_read(self) -> None:
        pass

    def abort(self) -> None:
        self.aborted = True


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> Loop:
    loop = Loop()
    monkeypatch.setattr(module, "perf_counter", lambda: loop.now)
    return loop


@pytest.fixture
def counts() -> Counter[str]:
    return Counter()


@pytest.fixture
def make(loop: Loop, counts: Counter[str]) -> Callable[..., Reader]:
    order: list[str] = []
    scheduler = ReadScheduler(loop, counts)  # type: ignore[arg-type]  # the only method of the loop in use
    return lambda name, cost=READ_SECONDS / 2: Reader(name, scheduler, loop, order, cost)


def test_little_input_is_read_at_once(make: Callable[..., Reader]) -> None:
    one, other = make("one"), make("other")
    one.data_received(bytes(SLICE))
    other.data_received(bytes(SLICE))
    assert one.order == ["one", "other"]


def test_readers_with_much_input_alternate(loop: Loop, make: Callable[..., Reader]) -> None:
    floods = [make(name) for name in "abc"]
    for flood in floods:
        flood.data_received(bytes(SMALL + 10 * SLICE))
    late = make("late", 0.0)
    late.data_received(b"small")
    order = late.order
    del order[:]
    loop.turn()
    assert order[0] == "late"
    for _ in range(5):
        loop.turn()
    assert sorted(order[1:4]) == sorted(order[4:7]) == ["a", "b", "c"]


def test_all_input_is_read(loop: Loop, make: Callable[..., Reader]) -> None:
    flood = make("flood")
    flood.data_received(bytes(5 * SLICE))
    flood.data_received(bytes(5 * SLICE))
    for _ in range(20):
        loop.turn()
    assert flood.order == ["flood"] * 10


def test_a_failed_reader_is_aborted_alone(loop: Loop, make: Callable[..., Reader], counts: Counter[str]) -> None:
    flood, faulty, other = make("flood", READ_SECONDS), make("faulty"), make("other")
    flood.data_received(bytes(10 * SLICE))
    faulty.data_received(b"raise")
    other.data_received(b"small")
    loop.turn()
    assert (faulty.aborted, flood.aborted, counts["fault"]) == (True, False, 1)
    assert "other" in flood.order
