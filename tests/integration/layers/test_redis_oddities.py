"""Keys, names and entries under the prefix that no server has written: skipped, counted and logged once."""

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from asgibus.layers import LayerUnavailable
from asgibus.layers.codec import pack
from asgibus.layers.frames import FIRST_PROTOCOL_KIND, GROUP_MESSAGE
from asgibus.layers.redis import heartbeat
from asgibus.layers.redis.pipeline import PAYLOAD_VERSION
from support.bus import until
from support.deadline import HANG
from support.peers import Place, place

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("regroup")]

Admin = "redis.Redis[bytes]"
KIND = FIRST_PROTOCOL_KIND
TRY_SECONDS = 0.3
INVALID = (b"\xff\xfe!", b"", b"!", b"a b!", b"x" * 200 + b"!", b"\x00", b"*[?!", b"..!!")
RESTS = ((), (None,), ([],), ({}, {}), (-1, -1, -1), ("\0",) * 4, (2**63 - 1,) * 5, (float("nan"),) * 4)
WRONG: dict[str, Callable[[Any, str], object]] = {
    "string": lambda admin, key: admin.set(key, b"\xff"),
    "list": lambda admin, key: admin.rpush(key, b"\xff"),
    "hash": lambda admin, key: admin.hset(key, b"\xff", b"\xff"),
    "set": lambda admin, key: admin.sadd(key, b"\xff"),
    "zset": lambda admin, key: admin.zadd(key, {b"\xff": float("inf")}),
    "stream": lambda admin, key: admin.xadd(key, {b"\xff": b"\xff"}),
}


class Bus:
    """Two processes on a bus of their own; one of them claims, consumes and has a process-local channel."""

    def __init__(self, prefix: str, one: Place, two: Place, channel: str) -> None:
        self.prefix = prefix
        self.one = one
        self.two = two
        self.channel = channel
        self.claimed: list[Any] = []
        self.taken: list[Any] = []

    async def claim(self) -> None:
        while claims := await self.two.bus.claim(["work"], 10):
            for claim in claims:
                self.claimed.append(claim.entry)
                self.two.bus.done(claim)

    async def take(self) -> None:
        while deliveries := await self.two.bus.take("jobs", 10):
            for delivery in deliveries:
                self.taken.append(delivery.message)
                self.two.bus.acknowledge(delivery)

    async def check(self, context: str = "") -> None:
        """Post, broadcast, offer and send, again and again until all of it arrives."""
        until = time.monotonic() + HANG
        while fault := await self._find_fault():
            assert time.monotonic() < until, f"{context}: {fault}"
            await asyncio.sleep(0.1)

    async def _find_fault(self) -> str:
        token = secrets.token_hex(8)
        one, two = self.one, self.two
        one.bus.post(two.mailbox, (KIND, token))
        two.bus.post(one.mailbox, (KIND, token))
        one.bus.offer("work", token)
        try:
            await one.layer.group_send("group", {"n": token})
            await one.layer.send(self.channel, {"n": token})
            await one.layer.send("jobs", {"n": token})
        except LayerUnavailable as error:
            return str(error)
        broadcast = GROUP_MESSAGE, "group", {"n": token}
        arrived = {
            "posted to the first": lambda: (KIND, token) in one.handler.frames,
            "posted to the second": lambda: (KIND, token) in two.handler.frames,
            "broadcast": lambda: broadcast in one.handler.frames and broadcast in two.handler.frames,
            "offered": lambda: token in self.claimed,
            "sent": lambda: {"n": token} in self.taken,
        }
        try:
            await until(lambda: all(each() for each in arrived.values()), TRY_SECONDS)
            while (await asyncio.wait_for(two.layer.receive(self.channel), TRY_SECONDS))["n"] != token:
                pass
        except (AssertionError, TimeoutError, LayerUnavailable) as error:
            return f"{[name for name, has_arrived in arrived.items() if not has_arrived()]} {error!r}"
        return ""

    def counted(self, kind: str) -> int:
        return self.one.layer.counts[kind] + self.two.layer.counts[kind]


@asynccontextmanager
async def checked_bus(url: str) -> AsyncIterator[Bus]:
    prefix = f"odd.{secrets.token_hex(4)}"
    async with place(url, prefix) as one, place(url, prefix) as two:
        for each in (one, two):
            await each.bus.join_group("group")
        channel = await two.layer.new_channel()
        bus = Bus(prefix, one, two, channel)
        claiming, taking = asyncio.create_task(bus.claim()), asyncio.create_task(bus.take())
        await bus.check()
        yield bus
        assert not claiming.done()
        assert not taking.done()
        two.bus.stop_claiming()
        await asyncio.wait_for(asyncio.gather(claiming, taking), 30)


async def test_keys_of_another_type_are_replaced(redis_url: str, admin: Admin, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key with the wrong type is replaced: each key of the bus and each other type, all at the same time."""
    monkeypatch.setattr(heartbeat, "BEAT_SECONDS", 0.3)

    async def replace_keys(kind: str) -> None:
        async with checked_bus(redis_url) as bus:
            keys = [key.decode() for key in admin.keys(f"{bus.prefix}:*")]
            assert {key.split(":")[1] for key in keys} >= {
                "processes",
                "mailbox",
                "joined",
                "group",
                "shared",
            }
            for key in keys:
                # No process removes messages: a send to such a key fails.
                if key.split(":")[1] in ("channel", "counts") or admin.type(key) == kind.encode():
                    continue
                with admin.pipeline() as pipeline:  # a transaction: the bus would create a key that is missing
                    pipeline.delete(key)
                    WRONG[kind](pipeline, key)
                    pipeline.execute()
                await bus.check(f"{key} as {kind}")
            assert bus.counted("wrong type")
            assert bus.one.handler.dead == bus.two.handler.dead == []

    async with asyncio.TaskGroup() as tasks:
        for kind in WRONG:
            tasks.create_task(replace_keys(kind), name=kind)


async def test_invalid_names_and_entries_are_skipped(
    redis_url: str, admin: Admin, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR, logger="asgibus.layers"):
        async with checked_bus(redis_url) as bus:
            prefix, one = bus.prefix, bus.one
            now = admin.time()[0] * 1000
            for name in INVALID:
                admin.zadd(f"{prefix}:processes", {name: now + 3000, b"other" + name: float("inf"), name + b"1": 1})
                admin.zadd(f"{prefix}:group:group", {name: now + 3_600_000})
                admin.sadd(f"{prefix}:joined:{one.mailbox}", name)
                admin.xgroup_createconsumer(f"{prefix}:shared:work", "workers", name)
                admin.hset(f"{prefix}:taken:{{{prefix}:channel:jobs}}", name, name)
                admin.sadd(f"{prefix}:joined:dead.1!", name)
            # A killed process, whose groups other processes remove.
            admin.zadd(f"{prefix}:processes", {b"dead.1!": now - 20_000, b"epoch:99999999999999999999": float("inf")})
            for shape in (1, None, [], {}, "", (PAYLOAD_VERSION,), (PAYLOAD_VERSION, 1, [1]), (PAYLOAD_VERSION, "", 7)):
                admin.xadd(f"{prefix}:mailbox:{one.mailbox}", {"b": pack(shape)})
                admin.xadd(f"{prefix}:mailbox:{one.mailbox}", {b"\xff": b"\xff", b"b": pack(shape)})
            for kind in (*range(-1, 17), "", None, 2**63 - 1):
                for rest in RESTS:
                    frames = [(kind, *rest)]
                    for sender in ("", "odd!"):
                        if (
                            kind in range(16) or kind is None or sender == ""
                        ):  # frames of the protocol go to the handler
                            admin.xadd(
                                f"{prefix}:mailbox:{one.mailbox}", {"b": pack((PAYLOAD_VERSION, sender, frames))}
                            )
            admin.xadd(f"{prefix}:shared:work", {b"\xff": b"\xff"})
            admin.xadd(f"{prefix}:shared:work", {"b": pack("odd"), "since": b"\xff"})
            await bus.check()
            await until(lambda: bus.counted("odd name"))
            await until(lambda: bus.counted("damaged entry"))
            await asyncio.sleep(0.7)  # a heartbeat after it
            await bus.check()
            assert "odd" in bus.claimed
    assert "a beat failed" not in caplog.text
    assert "cannot be kept up" not in caplog.text
    assert caplog.text.count("is no name") <= 3  # one for each layer
