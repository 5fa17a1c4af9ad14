"""Offers in doubt: each exists once, or its claimant knows that it must ask, or its producer is notified."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis

from asgibus.layers import Bus, LayerUnavailable, Offer, RedisChannelLayer
from asgibus.layers.codec import pack, unpack
from asgibus.layers.frames import FIRST_PROTOCOL_KIND
from asgibus.layers.redis import pipeline, work_queue
from support.bus import Recorder, until
from support.in_process import serving_here
from support.redis import RedisServer
from support.tcp_proxy import TcpProxy

pytestmark = pytest.mark.anyio

KEY = "asgibus:shared:x"
KIND = FIRST_PROTOCOL_KIND
WRITTEN = rb"XADD\r\n\$\d+\r\n" + KEY.encode()
ThroughProxy = tuple[TcpProxy, RedisChannelLayer]


async def read_all(bus: Bus, handler: Recorder) -> None:
    """Wait until all entries of the mailbox are read and the resulting commands are written."""
    token = f"{time.monotonic()}"
    bus.post(bus.mailbox, (KIND, token))
    await until(lambda: (KIND, token) in handler.frames)
    await bus.drain()


@pytest.fixture(autouse=True)
def _short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work_queue, "LOST_SECONDS", 0.1)
    monkeypatch.setattr(work_queue, "CLOCKS_DIFFER_SECONDS", -60)  # so that new entries are not stale


@pytest.fixture
async def layer(redis_url: str) -> AsyncIterator[RedisChannelLayer]:
    layer = RedisChannelLayer(redis_url)
    yield layer
    await layer.close()


@pytest.fixture
async def through_proxy(redis_url: str) -> AsyncIterator[ThroughProxy]:
    """Provide a proxy before Redis, and a layer that reaches Redis through the proxy."""
    url = urlsplit(redis_url)
    with TcpProxy((str(url.hostname), int(url.port or 0))) as proxy:
        layer = RedisChannelLayer(proxy.url + url.path)
        yield proxy, layer
        await layer.close()


def unexpected() -> None:
    raise AssertionError("the offer is not lost")


def entries(admin: "redis.Redis[bytes]") -> list[object]:
    """Return the entries of the shared channel, oldest first."""
    return [unpack(fields[b"b"]) for _, fields in admin.xrange(KEY)]


@pytest.mark.parametrize("arrives", [True, False], ids=["reply lost", "command lost"])
async def test_an_offer_in_flight_at_a_lost_connection_exists_once(
    arrives: bool, through_proxy: ThroughProxy, admin: "redis.Redis[bytes]"
) -> None:
    proxy, layer = through_proxy
    handler = Recorder()
    async with layer.bus("i", handler) as interface:
        interface.offer("x", (0,))
        await interface.drain()
        proxy.cut_request(WRITTEN, arrives=arrives)
        offers = [interface.offer("x", (number,), once=number == 2) for number in range(1, 4)]  # one flush for all
        await until(lambda: layer.counts["offer looked for"] >= 3)
        await interface.drain()
        await read_all(interface, handler)
        assert proxy.requests_cut == 1
        assert sorted(entries(admin)) == [(0,), (1,), (2,), (3,)]  # type: ignore[type-var]
        assert [interface.withdraw(offer) for offer in offers] == [True, True, True]
        await interface.drain()
        assert entries(admin) == [(0,)]


@pytest.mark.parametrize("once", [True, False], ids=["once", "again"])
async def test_the_second_claim_of_an_offer_in_doubt_is_stale(
    once: bool, through_proxy: ThroughProxy, layer: RedisChannelLayer
) -> None:
    """The offer was claimed and acknowledged before its producer knew that it was written."""
    proxy, proxied = through_proxy
    handler = Recorder()
    async with proxied.bus("i", handler) as interface, layer.bus("w", Recorder()) as worker:
        proxy.hold_replies("!mailbox")
        proxy.cut_request(WRITTEN, arrives=True)
        interface.offer("x", (1,), once=once)
        (claim,) = await worker.claim(["x"], 1)
        assert not claim.stale
        worker.post(interface.mailbox, (KIND, "claimed"))
        worker.done(claim)
        (claim,) = await worker.claim(["x"], 1)
        assert claim.entry == (1,)
        assert claim.stale
        worker.post(interface.mailbox, (KIND, "asked"))
        worker.done(claim)
        await worker.drain()
        proxy.heal()
        await read_all(interface, handler)
        assert handler.frames[:2] == [(KIND, "claimed"), (KIND, "asked")]


async def test_an_offer_written_again_is_stale(through_proxy: ThroughProxy, layer: RedisChannelLayer) -> None:
    proxy, proxied = through_proxy
    async with proxied.bus("i", Recorder()) as interface, layer.bus("w", Recorder()) as worker:
        proxy.cut_request(WRITTEN, arrives=False)
        interface.offer("x", (1,), once=True)
        (claim,) = await worker.claim(["x"], 1)
        assert (claim.entry, claim.stale) == ((1,), True)
        worker.done(claim)
        interface.offer("x", (2,), once=True)
        (claim,) = await worker.claim(["x"], 1)
        assert (claim.entry, claim.stale) == ((2,), False)
        worker.done(claim)


async def test_an_offer_that_arrives_late_exists_once(through_proxy: ThroughProxy, admin: "redis.Redis[bytes]") -> None:
    """An offer that arrives after it was looked for and repeated is on the channel once."""
    proxy, layer = through_proxy
    handler = Recorder()
    async with layer.bus("i", handler) as interface:
        proxy.cut_request(WRITTEN, arrives=True, late=True)
        interface.offer("x", (1,), once=True)
        await until(lambda: layer.counts["offer looked for"])
        await interface.drain()
        proxy.let_arrive()
        await until(lambda: proxy.requests_cut == 1)
        assert entries(admin) == [(1,)]


@pytest.mark.parametrize("arrives", [True, False], ids=["reply lost", "command lost"])
async def test_an_offer_exists_once_after_a_second_lost_connection(
    arrives: bool, through_proxy: ThroughProxy, admin: "redis.Redis[bytes]"
) -> None:
    """An offer is on the channel once, also if the connection breaks during the search for the offer."""
    proxy, layer = through_proxy
    handler = Recorder()
    async with layer.bus("i", handler) as interface:
        proxy.cut_request(WRITTEN, arrives=arrives)
        offer = interface.offer("x", (1,), once=True)
        await until(lambda: proxy.requests_cut == 1)
        proxy.cut_request(rb"XREVRANGE", arrives=True)
        await until(lambda: proxy.requests_cut == 2)
        await until(lambda: entries(admin))
        await interface.drain()
        await read_all(interface, handler)
        assert entries(admin) == [(1,)]
        assert interface.withdraw(offer)
        await interface.drain()
        assert entries(admin) == []


async def test_a_taken_or_withdrawn_offer_in_doubt_is_not_written_again(
    through_proxy: ThroughProxy, admin: "redis.Redis[bytes]"
) -> None:
    proxy, layer = through_proxy
    async with layer.bus("i", Recorder()) as interface:
        proxy.cut_request(WRITTEN, arrives=False)
        taken, withdrawn, kept = (interface.offer("x", (number,)) for number in range(3))
        await until(lambda: proxy.requests_cut == 1)
        taken.taken = True  # the claimant has confirmed the offer before the reply of Redis
        assert not interface.withdraw(withdrawn)
        await until(lambda: entries(admin))
        await interface.drain()
        assert entries(admin) == [(2,)]
        assert not kept.taken


async def test_an_offer_withdrawn_in_doubt_is_deleted(through_proxy: ThroughProxy, admin: "redis.Redis[bytes]") -> None:
    """An offer that was withdrawn while in doubt is removed, although it had been written."""
    proxy, layer = through_proxy
    async with layer.bus("i", Recorder()) as interface:
        proxy.cut_request(WRITTEN, arrives=True)
        offer = interface.offer("x", (1,))
        await until(lambda: proxy.requests_cut == 1)
        assert not interface.withdraw(offer)
        assert entries(admin) == [(1,)]
        await until(lambda: not entries(admin))


@pytest.mark.parametrize("once", [True, False], ids=["once", "again"])
async def test_an_offer_in_flight_at_a_loss_of_data(
    once: bool, through_proxy: ThroughProxy, admin: "redis.Redis[bytes]"
) -> None:
    proxy, layer = through_proxy
    handler = Recorder()
    lost: list[str] = []
    async with layer.bus("i", handler) as interface:
        proxy.cut_request(WRITTEN, arrives=True, then=admin.flushall)
        offer = interface.offer("x", (1,), once=once)
        await until(lambda: handler.interruptions == 1)
        interface.offer_again(offer, lambda: lost.append("offer"))  # as the producer does after an interruption
        await until(lambda: lost or entries(admin))
        await interface.drain()
        assert entries(admin) == ([] if once else [(1,)])
        assert lost == (["offer"] if once else [])
        assert not interface.withdraw(offer)
        await until(lambda: not entries(admin))


async def test_an_offer_beyond_the_scan_limit_is_not_written_again(
    through_proxy: ThroughProxy, admin: "redis.Redis[bytes]", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work_queue, "SCANNED_ENTRIES", 3)
    proxy, layer = through_proxy
    async with layer.bus("i", Recorder()) as interface:
        for _ in range(3):
            admin.xadd(KEY, {"b": pack(("another",))})
        proxy.cut_request(WRITTEN, arrives=False)
        offer = interface.offer("x", (1,), once=True)
        await until(lambda: layer.counts["offer looked for"] == 1)
        await interface.drain()
        assert entries(admin) == [("another",), ("another",), ("another",)]
        assert not interface.withdraw(offer)


# Offers that may be lost.


async def test_existing_and_claimed_offers_are_not_written_again(
    layer: RedisChannelLayer, admin: "redis.Redis[bytes]"
) -> None:
    async with layer.bus("i", Recorder()) as interface, layer.bus("w", Recorder()) as worker:
        claimed, waiting = interface.offer("x", (1,)), interface.offer("x", (2,))
        await interface.drain()
        (claim,) = await worker.claim(["x"], 1)
        for _ in range(3):
            interface.offer_again(claimed, unexpected)
            interface.offer_again(waiting, unexpected)
            await interface.drain()
            await asyncio.sleep(0)
        await until(lambda: layer.counts["offer looked for"] >= 2)
        await interface.drain()
        assert entries(admin) == [(1,), (2,)]
        assert admin.xpending(KEY, "workers")["pending"] == 1
        worker.done(claim)


async def test_lost_offers_are_written_again_once(layer: RedisChannelLayer, admin: "redis.Redis[bytes]") -> None:
    """A lost offer is made again once; an offer that may be made only once is reported as lost once."""
    handler = Recorder()
    lost: list[Offer] = []
    async with layer.bus("i", handler) as interface:
        offers = [interface.offer("x", (number,)) for number in range(250)]
        once = [interface.offer("x", ("once", number), once=True) for number in range(120)]
        await interface.drain()
        admin.flushall()
        for _ in range(3):
            for offer in offers + once:
                interface.offer_again(offer, partial(lost.append, offer))
        await until(lambda: admin.xlen(KEY) == 250)
        await until(lambda: len(lost) == 120 and handler.interruptions == 1)
        checked = layer.counts["offer looked for"]
        for offer in offers + once:
            interface.offer_again(offer, partial(lost.append, offer))
        await until(lambda: layer.counts["offer looked for"] == checked + 250)
        await interface.drain()
        assert entries(admin) == [(number,) for number in range(250)]
        assert lost == once
        # These offers can be withdrawn like the first, but another process may have handled them before.
        withdrawn = [interface.withdraw(offer) for offer in offers[1:]]
        assert not any(withdrawn)
        await until(lambda: entries(admin) == [(0,)])


async def test_an_acknowledged_offer_is_not_written_again(
    layer: RedisChannelLayer, admin: "redis.Redis[bytes]"
) -> None:
    lost: list[str] = []
    async with layer.bus("i", Recorder()) as interface, layer.bus("w", Recorder()) as worker:
        offer = interface.offer("x", (1,), once=True)
        (claim,) = await worker.claim(["x"], 1)
        worker.done(claim)
        await worker.drain()
        interface.offer_again(offer, lambda: lost.append("offer"))
        await until(lambda: lost)
        await interface.drain()
        assert entries(admin) == []


async def test_an_offer_whose_claimant_posts_in_time_is_not_lost(layer: RedisChannelLayer) -> None:
    async with layer.bus("i", Recorder()) as interface, layer.bus("w", Recorder()) as worker:
        offer = interface.offer("x", (1,), once=True)
        (claim,) = await worker.claim(["x"], 1)
        worker.done(claim)
        await worker.drain()
        interface.offer_again(offer, unexpected)
        await until(lambda: layer.counts["offer looked for"])
        offer.taken = True
        await asyncio.sleep(2 * work_queue.LOST_SECONDS)
        assert not layer.counts["offer lost"]


@pytest.mark.parametrize("end", ["taken", "withdrawn"])
async def test_taken_and_withdrawn_offers_are_not_written_again(
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
        interface.offer_again(ended, unexpected)
        interface.offer_again(other, unexpected)
        await until(lambda: entries(admin) == [(2,)])
        await interface.drain()
        assert entries(admin) == [(2,)]


async def test_offers_withdrawn_while_written_again_are_deleted(
    layer: RedisChannelLayer, admin: "redis.Redis[bytes]"
) -> None:
    async with layer.bus("i", Recorder()) as interface:
        offers = [interface.offer("x", (number,)) for number in range(10)]
        await interface.drain()
        admin.flushall()
        for offer in offers:
            interface.offer_again(offer, unexpected)
            interface.withdraw(offer)
        await until(lambda: layer.counts["interruption"])
        await interface.drain()
        await until(lambda: entries(admin) == [])


async def test_offer_again_does_nothing_after_close(layer: RedisChannelLayer, admin: "redis.Redis[bytes]") -> None:
    async with layer.bus("i", Recorder()) as interface:
        offer = interface.offer("x", (1,))
        await interface.drain()
    admin.flushall()
    interface.offer_again(offer, unexpected)
    await asyncio.sleep(0.1)
    assert entries(admin) == []


# Taking offers back.


async def test_withdraw_returns_whether_no_worker_can_have_the_offer(
    start_redis: Callable[..., RedisServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "CALL_SECONDS", 0.5)
    server = start_redis()
    layer = RedisChannelLayer(server.url)
    async with layer.bus("i", Recorder()) as interface:
        assert interface.withdraw(interface.offer("x", ("not written",)))
        offers = [interface.offer("x", (number,)) for number in range(4)]
        await asyncio.sleep(0)  # the flush is written
        assert not interface.withdraw(offers[0])
        await interface.drain()
        assert interface.withdraw(offers[1])
        await asyncio.to_thread(server.kill)
        await until(lambda: not interface.available)
        assert not interface.withdraw(offers[2])
        assert interface.withdraw(interface.offer("x", ("not written",)))
        with pytest.raises(LayerUnavailable):
            await interface.posted()
        await asyncio.to_thread(server.start)
        await until(lambda: interface.available and layer.counts["interruption"])
        assert not interface.withdraw(offers[3])
    await layer.close()


# Through both servers.


@pytest.mark.parametrize("late", [True, False], ids=["answer read later", "answer read at once"])
@pytest.mark.parametrize("arrives", [True, False], ids=["reply lost", "command lost"])
async def test_a_post_runs_once_if_its_offer_was_in_doubt(
    arrives: bool, late: bool, through_proxy: ThroughProxy, layer: RedisChannelLayer
) -> None:
    """A POST runs once, also if the answer of the first claimant is read after the second one has asked."""
    proxy, proxied = through_proxy
    runs: Counter[bytes] = Counter()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        runs[scope["path"].encode()] += 1
        await send({"type": "http.response.start", "status": 200, "headers": [(b"connection", b"close")]})
        await send({"type": "http.response.body", "body": scope["path"].encode()})

    async def post(port: int, number: int) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST /%d HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\n\r\nx" % number)
        answer = await reader.read()
        writer.close()
        return answer

    async with serving_here(app, proxied, layer) as port:
        assert (await post(port, 0)).startswith(b"HTTP/1.1 200")
        if late:
            proxy.hold_replies("!mailbox")
        proxy.cut_request(rb"XADD\r\n\$\d+\r\nasgibus:shared:http.request", arrives=arrives)
        posts = [asyncio.create_task(post(port, number)) for number in range(1, 6)]
        await until(lambda: proxy.requests_cut == 1 and proxied.counts["reconnect"])
        if late:
            await until(lambda: proxied.counts["offer looked for"])  # of those that share the flush with the first
        await until(lambda: len(runs) == 6 or (late and not arrives))
        proxy.heal()
        answers = await asyncio.gather(*posts)
        assert [answer.splitlines()[0] for answer in answers] == [b"HTTP/1.1 200 OK"] * 5
        assert runs == Counter(b"/%d" % number for number in range(6))
