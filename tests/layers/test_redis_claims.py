"""The claims of one process, in an order of replies that no test can bring about from outside."""

import asyncio
from collections import Counter
from typing import Any, cast

import pytest

from asgibus.layers.codec import pack
from asgibus.layers.redis.address import Address
from asgibus.layers.redis.claims import Claimant
from asgibus.layers.redis.connection import RedisConnection
from asgibus.layers.redis.link import Outage
from asgibus.layers.redis.writer import Writer

pytestmark = pytest.mark.anyio

ENTRY = [b"1-0", [b"b", pack("the entry")]]
OTHER = [b"2-0", [b"b", pack("another")]]


class Connection:
    """Takes what is asked; the test answers."""

    def __init__(self) -> None:
        self.asked: list[bytes] = []

    def write(self, data: bytes, on_replies: Any) -> None:
        self.asked.append(data)


class Acks:
    """A writer that only acknowledges."""

    def __init__(self) -> None:
        self.acked: list[tuple[str, bytes, Any]] = []

    def ack(self, key: str, entry_id: bytes, on_acked: Any) -> None:
        self.acked.append((key, entry_id, on_acked))


async def test_an_answer_that_an_acknowledgement_has_overtaken_is_no_new_claim() -> None:
    """The first answer on a new connection lists what is pending; it may be older than what the writer heard since."""
    address = Address.from_url("redis://127.0.0.1:1")
    writer = Acks()
    claimant = Claimant(address, "p", "worker.1!", Outage(address, Counter()), cast(Writer, writer))
    key = claimant.key("work")

    async def claim(answers: list[Any], *, acked_before: int | None = None) -> list[str]:
        claiming = asyncio.create_task(claimant.claim(["work"], 10))
        await asyncio.sleep(0)
        connection = cast(RedisConnection, Connection())
        claimant._up(connection)
        for number, entries in enumerate(answers):
            if number == acked_before:
                for stream, entry_id, on_acked in writer.acked:
                    on_acked(stream, [entry_id])
            claimant._reply(connection, [[key.encode(), entries]])
        claims = await claiming
        for each in claims:
            claimant.done(each)
        return [each.entry for each in claims]

    try:
        assert await claim([[ENTRY]]) == ["the entry"]
        assert await claim([[ENTRY], [OTHER]], acked_before=0) == ["another"]
    finally:
        await claimant._link.close()
