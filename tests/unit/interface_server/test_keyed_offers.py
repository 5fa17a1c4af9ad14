"""Connections with keys that wait for a worker: they cost nothing meanwhile, and never hold the event loop."""

import asyncio
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any

import pytest

from asgibus.interface_server.callback_tasks import CallbackTasks
from asgibus.interface_server.connections import keyed_offers
from asgibus.interface_server.connections.connection import Connection
from asgibus.interface_server.connections.keyed_offers import AGAIN_SECONDS, AT_ONCE, BACK_SECONDS, SETTLE_SECONDS
from asgibus.interface_server.connections.registry import ConnectionRegistry
from asgibus.interface_server.settings import InterfaceSettings
from asgibus.layers.offers import AffinityKey, Offer
from asgibus.protocol.connect_request import ConnectRequest, RequestHead
from asgibus.protocol.events import REQUEST_END

pytestmark = pytest.mark.anyio

MANY = 5 * AT_ONCE


class FakeBus:
    """A bus that answers offers by key when it is told to."""

    mailbox = "interface!"
    available = True

    def __init__(self) -> None:
        self.offered: list[tuple[Offer, Callable[[Offer], None]]] = []
        self.assigned: list[AffinityKey] = []

    def offer_by_key(self, key: Any, lifetime: float, request: Any, on_assigned: Any, **options: Any) -> Offer:
        offer = Offer("", size=500)
        self.offered.append((offer, on_assigned))
        return offer

    def assign(self, key: AffinityKey, lifetime: float, mailbox: str) -> None:
        self.assigned.append(key)

    def answer(self, claimant: str) -> int:
        """Answer all offers, and return their number."""
        offered, self.offered = self.offered, []
        for offer, on_assigned in offered:
            offer.claimant = claimant
            on_assigned(offer)
        return len(offered)

    def announce_keys(self, pools: Iterable[str]) -> None:
        pass

    def withdraw(self, offer: Offer) -> bool:
        return True


class FakeTerminator:
    """The protocol side of a connection, which keeps its failure."""

    write_paused = False
    status = 0

    def fail(self, status: int, close_code: int) -> None:
        self.status = status


def head(number: int) -> RequestHead:
    request = RequestHead()
    request.kind, request.http_version, request.method, request.scheme = "http", "1.1", "GET", "http"
    request.raw_path, request.query_string, request.headers = b"/", b"room=%d" % number, []
    request.client = request.server = None
    request.subprotocols, request.extensions, request.expects_continue = (), {}, False
    return request


class Site:
    """A registry whose clock moves by `tick`."""

    def __init__(self) -> None:
        self.bus = FakeBus()
        self.registry = ConnectionRegistry(InterfaceSettings(affinity=("query:room",), connect_timeout=10))
        self.now = self.registry.now = 100.0
        self.tasks = CallbackTasks()
        self.registry.on_bus(self.bus, self.tasks, None)  # type: ignore[arg-type]

    def open(self, number: int) -> FakeTerminator:
        terminator = FakeTerminator()
        self.registry.open(head(number), terminator, ((REQUEST_END, b""),))  # type: ignore[arg-type]
        return terminator

    def tick(self, seconds: float = AGAIN_SECONDS) -> None:
        self.now += seconds
        self.registry.tick(self.now)


async def test_one_connection_at_a_time_tries_whether_there_is_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    site = Site()
    site.tick()
    for number in range(MANY):
        site.open(number)
    site.bus.answer("")
    prepared = []
    unclaimed_request = keyed_offers._unclaimed_request

    def prepare(connection: Connection) -> ConnectRequest:
        prepared.append(connection)
        return unclaimed_request(connection)

    monkeypatch.setattr(keyed_offers, "_unclaimed_request", prepare)
    for _ in range(3):
        site.tick()
        await site.tasks.wait()
        assert site.bus.answer("") == 1
    assert len(prepared) == len({*prepared}) == 3  # those that wait are not looked at, and take turns


async def test_the_loop_runs_while_many_connections_are_offered() -> None:
    site = Site()
    site.tick()
    for number in range(MANY):
        site.open(number)
    site.bus.answer("")
    site.tick()
    await site.tasks.wait()
    site.bus.answer("worker!")
    site.tick()
    numbers = [0]
    for _ in range(MANY):
        await asyncio.sleep(0)
        numbers.append(len(site.bus.offered))
    assert max(after - before for before, after in pairwise(numbers)) == AT_ONCE
    assert site.bus.answer("worker!") == MANY - 1


async def test_a_process_offers_nothing_that_another_one_has() -> None:
    site = Site()
    site.tick()
    for number in range(MANY):
        site.open(number)
    site.bus.answer("")
    site.tick()
    await site.tasks.wait()
    site.bus.answer("worker!")
    site.tick()
    await asyncio.sleep(0)
    assert 0 < site.bus.answer("worker!") < MANY - 1, "some are being offered"
    site.registry.give_away()
    await site.tasks.wait()
    assert site.bus.offered == []


async def test_who_has_waited_too_long_is_given_up_and_not_offered() -> None:
    site = Site()
    site.tick()
    terminators = [site.open(number) for number in range(MANY)]
    site.bus.answer("")
    site.tick(11)
    assert {terminator.status for terminator in terminators} == {503}
    await site.tasks.wait()
    assert site.bus.offered == []
    assert site.registry._keyed is not None
    assert not any(site.registry._keyed.export()["waiting"])


async def test_connections_wait_until_the_keys_are_assigned_again_and_no_longer() -> None:
    site = Site()
    site.tick()
    for number in range(MANY):
        site.open(number)
    site.bus.answer("worker!")
    assert site.registry._keyed is not None
    site.registry._keyed.interrupted()
    site.open(MANY)
    site.tick()
    await site.tasks.wait()
    assert site.bus.assigned == site.bus.offered == []
    site.tick(SETTLE_SECONDS)
    await asyncio.sleep(0)
    assert len(site.bus.assigned) == AT_ONCE
    await site.tasks.wait()
    assert len({*site.bus.assigned}) == MANY
    assert site.bus.answer("worker!") == 1


async def test_no_key_is_assigned_before_it_is_known_whether_the_layer_has_lost_them() -> None:
    site = Site()
    site.tick()
    site.bus.available = False
    site.open(1)
    site.tick()
    await site.tasks.wait()
    site.bus.available = True
    site.tick()
    site.open(2)
    await site.tasks.wait()
    assert site.bus.offered == []
    site.tick(BACK_SECONDS)
    await site.tasks.wait()
    assert site.bus.answer("worker!") == 2
