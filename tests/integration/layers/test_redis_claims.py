"""Stale claims, and claims whose replies come in an order that only a simulated connection can produce."""

import asyncio
from collections import Counter
from types import SimpleNamespace
from typing import Any, cast

import pytest
import redis

from asgibus.layers import RedisChannelLayer
from asgibus.layers.codec import pack
from asgibus.layers.contract import Handler
from asgibus.layers.redis.client import Outage, RedisConnection
from asgibus.layers.redis.codec import EntryCodec
from asgibus.layers.redis.config import read_hosts
from asgibus.layers.redis.keys import Keys
from asgibus.layers.redis.pipeline import Store
from asgibus.layers.redis.work_queue import Consumer
from support.bus import Recorder, until

pytestmark = pytest.mark.anyio

ENTRY = [b"1-0", [b"b", pack("the entry")]]
OTHER = [b"2-0", [b"b", pack("another")]]


class Connection:
    """A connection that records commands; the test sends the replies."""

    run_id = "the same"

    def __init__(self) -> None:
        self.commands: list[bytes] = []

    def write(self, data: bytes, on_replies: Any) -> None:
        self.commands.append(data)


class Acks:
    """A writer that only acknowledges."""

    def __init__(self) -> None:
        self.acked: list[tuple[str, bytes, Any]] = []

    def ack(self, key: str, entry_id: bytes, on_acked: Any) -> None:
        self.acked.append((key, entry_id, on_acked))


async def test_offers_older_than_the_claimant_are_stale(redis_url: str) -> None:
    offering, claiming = (RedisChannelLayer(redis_url) for _ in range(2))
    async with offering.bus("interface", Recorder()) as interface, claiming.bus("worker", Recorder()) as worker:
        interface.offer("work", "old")
        await interface.drain()
        (old,) = await worker.claim(["work"], 10)
        with redis.Redis.from_url(redis_url, protocol=2) as admin:
            began = admin.time()[0]
            await until(lambda: admin.time()[0] > began + 1)
        interface.offer("work", "new")
        (new,) = await worker.claim(["work"], 10)
        assert [(claim.entry, claim.stale) for claim in (old, new)] == [("old", True), ("new", False)]
        for claim in (old, new):
            worker.done(claim)
    for layer in (offering, claiming):
        await layer.close()


async def test_a_reply_with_an_acknowledged_entry_is_no_claim() -> None:
    """The first reply on a new connection lists pending claims; later replies to the writer may be newer."""
    address = read_hosts("redis://127.0.0.1:1")[0]
    writer = Acks()
    store = SimpleNamespace(
        address=address,
        keys=Keys("p"),
        entries=EntryCodec(None, Counter()),
        outage=Outage(address, Counter()),
        pipeline=writer,
    )
    claimant = Consumer(cast(Store, store), "worker.1!", Handler(), lambda: None)
    key = Keys("p").shared("work")

    async def claim(answers: list[Any], *, acked_before: int | None = None) -> list[str]:
        claiming = asyncio.create_task(claimant.claim(["work"], 10))
        await asyncio.sleep(0)  # until the call waits
        connection = cast(RedisConnection, Connection())
        claimant._on_up(connection)
        claimant._on_new_server([b"0", b"0"])
        for number, entries in enumerate(answers):
            if number == acked_before:
                for stream, entry_id, on_acked in writer.acked:
                    on_acked(stream, [entry_id])
            claimant._on_read(connection, [[key.encode(), entries]])
        claims = await claiming
        for each in claims:
            claimant.ack(each)
        return [each.entry for each in claims]

    try:
        assert await claim([[ENTRY]]) == ["the entry"]
        assert await claim([[ENTRY], [OTHER]], acked_before=0) == ["another"]
    finally:
        await claimant._link.close()
