"""Offers in doubt: each is on the shared channel exactly once, whatever the connection or Redis lost."""

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from urllib.parse import urlsplit

import pytest
import redis

from asgibus.layers import RedisChannelLayer
from asgibus.layers.codec import unpack
from support.bus import Recorder, until

pytestmark = pytest.mark.anyio

KEY = "asgibus:shared:x"
RESOLVED = 3.0
"""Seconds after a cut within which an offer in doubt is looked for: it is left alone for one, for its claimant."""


@pytest.fixture
def admin(redis_url: str) -> Iterator["redis.Redis[bytes]"]:
    with redis.Redis.from_url(redis_url, protocol=2, socket_timeout=10) as client:
        yield client


@pytest.fixture
async def layer(redis_url: str) -> AsyncIterator[RedisChannelLayer]:
    layer = RedisChannelLayer(redis_url)
    yield layer
    await layer.close()


class Cutter:
    """A proxy before Redis that breaks a connection at a command: before that arrives, or before its reply."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._target = (parts.hostname or "127.0.0.1", parts.port or 6379)
        self.path = parts.path
        self.cuts = 0
        self._command: re.Pattern[bytes] | None = None
        self._arrives = False

    def cut_at(self, command: bytes, *, arrives: bool) -> None:
        """Cut once, at the next command that matches."""
        self._command, self._arrives = re.compile(command, re.DOTALL), arrives

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to_reader, to_writer = await asyncio.open_connection(*self._target)
        replies = asyncio.create_task(self._replies(to_reader, writer))
        try:
            while data := await reader.read(65536):
                if self._command is not None and self._command.search(data):
                    self._command = None
                    self.cuts += 1
                    if self._arrives:
                        replies.cancel()
                        await asyncio.wait([replies])
                        to_writer.write(data)
                        await to_reader.read(1)  # Redis has done it, and its reply goes no further
                    return
                to_writer.write(data)
        except OSError:
            pass  # the client has left
        finally:
            replies.cancel()
            writer.transport.abort()
            to_writer.transport.abort()

    async def _replies(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)


@pytest.fixture
async def cutter(redis_url: str) -> AsyncIterator[tuple[Cutter, RedisChannelLayer]]:
    """The proxy, and a layer that reaches Redis through it."""
    cutter = Cutter(redis_url)
    server = await asyncio.start_server(cutter.serve, "127.0.0.1", 0)
    layer = RedisChannelLayer(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}{cutter.path}")
    yield cutter, layer
    await layer.close()
    server.close()


def there(admin: "redis.Redis[bytes]") -> list[object]:
    """What is on the shared channel, oldest first."""
    return [unpack(fields[b"b"]) for _, fields in admin.xrange(KEY)]


@pytest.mark.parametrize("arrives", [True, False], ids=["reply lost", "command lost"])
async def test_an_offer_in_flight_when_the_connection_breaks_is_there_once(
    arrives: bool, cutter: tuple[Cutter, RedisChannelLayer], admin: "redis.Redis[bytes]"
) -> None:
    proxy, layer = cutter
    async with layer.bus("i", Recorder()) as interface:
        interface.offer("x", (0,))
        await interface.drain()
        proxy.cut_at(rb"XADD\r\n\$\d+\r\n" + KEY.encode(), arrives=arrives)
        for number in range(1, 4):
            interface.offer("x", (number,))  # one flush, so all in flight together
        await until(lambda: layer.counts["offer looked for"] >= 3, RESOLVED)
        await interface.drain()
        assert proxy.cuts == 1
        assert sorted(there(admin)) == [(0,), (1,), (2,), (3,)]  # type: ignore[type-var]
        interface.offer("x", (4,))
        await interface.drain()
        await asyncio.sleep(0.2)
        assert len(there(admin)) == 5


async def test_an_offer_that_was_lost_twice_is_there_once(
    cutter: tuple[Cutter, RedisChannelLayer], admin: "redis.Redis[bytes]"
) -> None:
    """The search for it is cut too."""
    proxy, layer = cutter
    async with layer.bus("i", Recorder()) as interface:
        proxy.cut_at(rb"XADD\r\n\$\d+\r\n" + KEY.encode(), arrives=True)
        interface.offer("x", (1,))
        await until(lambda: proxy.cuts == 1)
        proxy.cut_at(rb"XREVRANGE", arrives=True)
        await until(lambda: layer.counts["offer looked for"] == 2, 2 * RESOLVED)
        await interface.drain()
        assert proxy.cuts == 2
        assert there(admin) == [(1,)]


async def test_an_offer_in_doubt_that_is_taken_or_withdrawn_is_not_made_again(
    cutter: tuple[Cutter, RedisChannelLayer], admin: "redis.Redis[bytes]"
) -> None:
    proxy, layer = cutter
    async with layer.bus("i", Recorder()) as interface:
        proxy.cut_at(rb"XADD\r\n\$\d+\r\n" + KEY.encode(), arrives=False)
        taken, withdrawn, kept = (interface.offer("x", (number,)) for number in range(3))
        await until(lambda: proxy.cuts == 1)
        taken.taken = True  # its claimant has named itself, though it was never said that it was written
        interface.withdraw(withdrawn)
        await until(lambda: there(admin), RESOLVED)
        await interface.drain()
        assert there(admin) == [(2,)]
        assert not kept.taken


async def test_an_offer_that_was_withdrawn_while_in_doubt_does_not_stay(
    cutter: tuple[Cutter, RedisChannelLayer], admin: "redis.Redis[bytes]"
) -> None:
    """Though it was written: nobody waits for it any more."""
    proxy, layer = cutter
    async with layer.bus("i", Recorder()) as interface:
        proxy.cut_at(rb"XADD\r\n\$\d+\r\n" + KEY.encode(), arrives=True)
        offer = interface.offer("x", (1,))
        await until(lambda: proxy.cuts == 1)
        interface.withdraw(offer)
        await until(lambda: not there(admin), RESOLVED)


# Offers that may be lost.


async def test_what_is_there_or_claimed_is_not_offered_again(
    layer: RedisChannelLayer, admin: "redis.Redis[bytes]"
) -> None:
    async with layer.bus("i", Recorder()) as interface, layer.bus("w", Recorder()) as worker:
        claimed, waiting = interface.offer("x", (1,)), interface.offer("x", (2,))
        await interface.drain()
        (claim,) = await worker.claim(["x"], 1)
        for _ in range(3):
            interface.offer_again(claimed)
            interface.offer_again(waiting)
            await interface.drain()
            await asyncio.sleep(0)
        await until(lambda: layer.counts["offer looked for"] >= 2)
        await interface.drain()
        assert there(admin) == [(1,), (2,)]
        assert admin.xpending(KEY, "workers")["pending"] == 1
        worker.done(claim)


async def test_what_was_lost_is_offered_again_once(layer: RedisChannelLayer, admin: "redis.Redis[bytes]") -> None:
    async with layer.bus("i", Recorder()) as interface:
        offers = [interface.offer("x", (number,)) for number in range(250)]
        await interface.drain()
        admin.flushall()
        for _ in range(3):
            for offer in offers:
                interface.offer_again(offer)
        await until(lambda: admin.xlen(KEY) == 250)
        for offer in offers:
            interface.offer_again(offer)
        await until(lambda: layer.counts["offer looked for"] == 500)
        await interface.drain()
        assert there(admin) == [(number,) for number in range(250)]
        # They can be taken back as the first time.
        for offer in offers[1:]:
            interface.withdraw(offer)
        await until(lambda: there(admin) == [(0,)])


@pytest.mark.parametrize("end", ["taken", "withdrawn"])
async def test_what_has_ended_is_never_offered_again(
    end: str, layer: RedisChannelLayer, admin: "redis.Redis[bytes]"
) -> None:
    async with layer.bus("i", Recorder()) as interface:
        ended, other = interface.offer("x", (1,)), interface.offer("x", (2,))
        await interface.drain()
        if end == "taken":
            ended.taken = True
        else:
            interface.withdraw(ended)
        await interface.drain()
        admin.flushall()
        interface.offer_again(ended)
        interface.offer_again(other)
        await until(lambda: there(admin) == [(2,)])
        await interface.drain()
        assert there(admin) == [(2,)]


async def test_what_is_withdrawn_while_it_is_offered_again_does_not_stay(
    layer: RedisChannelLayer, admin: "redis.Redis[bytes]"
) -> None:
    async with layer.bus("i", Recorder()) as interface:
        offers = [interface.offer("x", (number,)) for number in range(10)]
        await interface.drain()
        admin.flushall()
        for offer in offers:
            interface.offer_again(offer)
            interface.withdraw(offer)
        await until(lambda: layer.counts["offer looked for"] == 10)
        await interface.drain()
        await until(lambda: there(admin) == [])


async def test_nobody_is_asked_to_look_after_the_end(layer: RedisChannelLayer, admin: "redis.Redis[bytes]") -> None:
    async with layer.bus("i", Recorder()) as interface:
        offer = interface.offer("x", (1,))
        await interface.drain()
    admin.flushall()
    interface.offer_again(offer)
    await asyncio.sleep(0.1)
    assert there(admin) == []
