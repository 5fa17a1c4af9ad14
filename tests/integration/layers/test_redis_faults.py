"""Faults between a process and Redis: cut connections, errors, a Redis that lost its data, damaged entries."""

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Callable
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis

from asgibus.layers import LayerUnavailable, RedisChannelLayer
from asgibus.layers.codec import pack
from asgibus.layers.contract import Bus
from asgibus.layers.frames import FIRST_PROTOCOL_KIND, GROUP_MESSAGE
from asgibus.layers.redis import heartbeat
from asgibus.layers.redis.pipeline import PAYLOAD_VERSION
from support.bus import Recorder, until
from support.deadline import HANG, in_time
from support.redis import RedisServer
from support.tcp_proxy import TcpProxy

pytestmark = pytest.mark.anyio

KIND = FIRST_PROTOCOL_KIND
StartRedis = Callable[..., RedisServer]
Kill = Callable[[str], int]


@pytest.fixture
async def layer(redis_url: str) -> AsyncIterator[RedisChannelLayer]:
    layer = RedisChannelLayer(redis_url)
    yield layer
    await layer.close()


@pytest.fixture
def kill(admin: "redis.Redis[bytes]") -> Kill:
    """Cut the connections whose name ends in `kind`; return their number."""

    def kill(name: str) -> int:
        clients = [each for each in admin.client_list() if each["name"] and each["name"].endswith(name)]
        return sum(int(admin.client_kill_filter(_id=each["id"])) for each in clients)

    return kill


class Numbered(Recorder):
    """A handler that takes frames as a session does: each number once, and a gap is an error."""

    def __init__(self) -> None:
        super().__init__()
        self.expected = 0
        self.repeated = 0
        self.gaps: list[tuple[int, int]] = []

    def batch(self, sender: str, frames: Any) -> None:
        for _, number, *_ in frames:
            if number == self.expected:
                self.expected += 1
            elif number < self.expected:
                self.repeated += 1
            else:
                self.gaps.append((self.expected, number))


RAISES = KIND + 1


class Raising(Recorder):
    """A handler that raises for a frame of the kind RAISES."""

    def batch(self, sender: str, frames: Any) -> None:
        if frames[0][0] == RAISES:
            raise ZeroDivisionError
        super().batch(sender, frames)


@pytest.mark.parametrize("names", [["writer"], ["!mailbox"], ["writer", "!mailbox"]], ids="+".join)
async def test_posted_frames_survive_cut_connections(layer: RedisChannelLayer, kill: Kill, names: list[str]) -> None:
    reader = Numbered()
    count = 4000
    async with layer.bus("a", reader) as a, layer.bus("b", Recorder()) as b:
        cut = 0
        for number in range(count):
            b.post(a.mailbox, (KIND, number, b"x" * 100))
            if number % 20 == 0:
                await asyncio.sleep(0)
            if number % 500 == 250:
                for name in names:
                    cut += await asyncio.to_thread(kill, name)
        await until(lambda: reader.expected == count or reader.gaps)
        assert reader.gaps == []
        assert cut
        if names == ["!mailbox"]:
            assert reader.repeated == 0


async def test_an_outage_is_logged_once(
    layer: RedisChannelLayer, admin: "redis.Redis[bytes]", caplog: pytest.LogCaptureFixture
) -> None:
    reader = Recorder()
    with caplog.at_level(logging.INFO, logger="asgibus.layers"):
        async with layer.bus("a", reader) as a, layer.bus("b", Recorder()) as b:
            admin.client_kill_filter(_type="normal")
            await until(lambda: f"{layer.address} is back" in caplog.text)
            b.post(a.mailbox, (KIND, 1))
            await until(lambda: reader.frames)
    assert caplog.text.count("is gone") == caplog.text.count(f"{layer.address} is back") == 1


async def claim_all(bus: Bus, claimed: list[int]) -> None:
    while claims := await bus.claim(["x", "y"], 5):
        for claim in claims:
            claimed.append(claim.entry[0])
            bus.done(claim)
        await asyncio.sleep(0)


async def test_a_message_in_a_lost_reply_is_redelivered(redis_url: str) -> None:
    """A message in a lost reply is redelivered to its consumer, although the consumer is alive."""
    url = urlsplit(redis_url)
    with TcpProxy((str(url.hostname), int(url.port or 0))) as proxy:
        layer, direct = RedisChannelLayer(proxy.url + url.path), RedisChannelLayer(redis_url)
        async with layer.bus("w", Recorder()) as worker:
            await direct.send("jobs", {"text": "x" * 20_000})
            proxy.cut_reply("receive", least=10_000)  # the reply that holds the message
            (delivery,) = await asyncio.wait_for(worker.take("jobs", 1), 10)
            assert proxy.armed() == 0
            assert (delivery.message["text"], delivery.attempt) == ("x" * 20_000, 1)
            worker.acknowledge(delivery)
            await worker.drain()
        assert (await direct.channel_statistics("jobs"))["messages_pending"] == 0
        for each in (layer, direct):
            await each.close()


@pytest.mark.usefixtures("regroup")
async def test_messages_of_a_new_process_are_no_orphans(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A search for orphans that began before a process joined does not take the messages of that process."""
    monkeypatch.setattr(heartbeat, "GRACE_SECONDS", 0.1)
    url = urlsplit(redis_url)
    with TcpProxy((str(url.hostname), int(url.port or 0))) as proxy:
        slow, direct = RedisChannelLayer(proxy.url + url.path), RedisChannelLayer(redis_url)
        async with slow.bus("old", Recorder()) as old:
            await direct.send("jobs", {})
            for delivery in await old.take("jobs", 1):  # from now on searched for orphans
                old.acknowledge(delivery)
            await asyncio.sleep(0.8)  # until a search, and the end of the grace time
            proxy.delay(0.3, "writer")
            for number in range(4):
                await direct.declare_dead(f"worker.{number:016x}!")
                await asyncio.sleep(0.1)  # time for the question; its answer is under way now
                await direct.send("jobs", {"n": number})
                async with direct.bus("new", Recorder()) as new:
                    (delivery,) = await asyncio.wait_for(new.take("jobs", 1), 30)
                    await asyncio.sleep(0.7)  # until a search
                    new.acknowledge(delivery)
                assert (await direct.channel_statistics("jobs"))["messages_pending"] == 0
            proxy.heal()
        assert slow.counts["message given back"] == 0
        for each in (slow, direct):
            await each.close()


async def test_claims_survive_cut_connections(layer: RedisChannelLayer, kill: Kill) -> None:
    """Claims are delivered again when the reply that carried them was lost."""
    claimed: list[int] = []
    dice = random.Random(5)
    async with layer.bus("i", Recorder()) as interface, layer.bus("w", Recorder()) as worker:
        claiming = asyncio.create_task(claim_all(worker, claimed))
        number = 0
        for _ in range(12):
            killing = asyncio.create_task(asyncio.to_thread(kill, "!claims"))
            while not killing.done():
                interface.offer("xy"[number % 2], (number,))
                number += 1
                await asyncio.sleep(dice.uniform(0, 0.001))
            await killing
        await until(lambda: len(claimed) >= number)
        worker.stop_claiming()
        await claiming
    assert sorted(claimed) == list(range(number))


async def test_a_claim_in_a_lost_reply_is_delivered_again(
    layer: RedisChannelLayer, admin: "redis.Redis[bytes]", kill: Kill
) -> None:
    async with layer.bus("i", Recorder()) as interface, layer.bus("w", Recorder()) as worker:
        claiming = asyncio.create_task(worker.claim(["x"], 5))
        await until(lambda: admin.exists("asgibus:shared:x"))
        interface.offer("x", (1,))
        (first,) = await claiming
        # The worker does not know of this claim under its name, as after a lost reply.
        admin.xadd("asgibus:shared:x", {"b": pack((2,))})
        admin.xreadgroup("workers", worker.mailbox, {"asgibus:shared:x": ">"}, count=1)
        claiming = asyncio.create_task(worker.claim(["x"], 5))
        await until(lambda: kill("!claims"))
        (second,) = await asyncio.wait_for(claiming, 30)
        assert second.entry == (2,)  # and not the first again, which is being served
        worker.done(first)
        worker.done(second)
        await worker.drain()
        assert admin.xpending("asgibus:shared:x", "workers")["pending"] == 0


async def test_an_undelivered_claim_is_claimed_by_another_process(
    layer: RedisChannelLayer, admin: "redis.Redis[bytes]"
) -> None:
    async with layer.bus("w", Recorder()) as other:
        async with layer.bus("w", Recorder()) as worker:
            claiming = asyncio.create_task(worker.claim(["x"], 5))
            await until(lambda: admin.exists("asgibus:shared:x"))
            worker.stop_claiming()
            assert await claiming == []
            admin.xadd("asgibus:shared:x", {"b": pack((1,))})
            admin.xreadgroup("workers", worker.mailbox, {"asgibus:shared:x": ">"}, count=1)
        stopped = time.monotonic()
        (claim,) = await asyncio.wait_for(other.claim(["x"], 5), HANG)
        in_time(time.monotonic() - stopped, 8)  # after 10 s it would be found in any case
        assert claim.entry == (1,)
        other.done(claim)


async def test_a_waiting_receive_raises_at_a_cut_connection(layer: RedisChannelLayer, kill: Kill) -> None:
    receiving = asyncio.create_task(layer.receive("a"))
    await asyncio.to_thread(lambda: None)
    for _ in range(100):
        if await asyncio.to_thread(kill, "-receive"):
            break
    with pytest.raises(LayerUnavailable):
        await asyncio.wait_for(receiving, 30)
    await layer.send("a", {"n": 1})
    assert await layer.receive("a") == {"n": 1}


async def test_posted_frames_wait_for_a_redis_without_room(
    start_redis: StartRedis, caplog: pytest.LogCaptureFixture
) -> None:
    server = start_redis()
    layer = RedisChannelLayer(server.url)
    reader = Numbered()
    with redis.Redis.from_url(server.url, protocol=2) as admin:
        async with layer.bus("a", reader) as a, layer.bus("b", Recorder()) as b:
            admin.config_set("maxmemory", "1kb")
            with caplog.at_level(logging.INFO, logger="asgibus.layers"):
                for number in range(200):
                    b.post(a.mailbox, (KIND, number))
                    if number % 10 == 0:
                        await asyncio.sleep(0.005)
                await until(lambda: "refuses writes" in caplog.text)
                with pytest.raises(LayerUnavailable, match="OOM"):
                    await layer.send("ordinary", {})
                assert reader.expected == 0
                refused = admin.info("commandstats")["cmdstat_xadd"]["rejected_calls"]
                assert refused < 10, "it is asked now and then, not with every frame"
                admin.config_set("maxmemory", "0")
                await until(lambda: reader.expected == 200)
            assert reader.gaps == []
            assert caplog.text.count("refuses writes") == caplog.text.count("takes writes again") == 1
        await layer.close()


async def test_posted_waits_for_a_redis_without_room(start_redis: StartRedis) -> None:
    """`posted` waits for a frame that a full Redis rejects, although later commands succeed."""
    server = start_redis()
    layer = RedisChannelLayer(server.url)
    reader = Recorder()
    with redis.Redis.from_url(server.url, protocol=2) as admin:
        async with layer.bus("a", reader) as a, layer.bus("b", Recorder()) as b:
            b.post(a.mailbox, (KIND, 0))
            await b.posted()
            assert admin.xlen(f"asgibus:mailbox:{a.mailbox}") == 2
            admin.config_set("maxmemory", "1kb")
            b.post(a.mailbox, (KIND, 1))
            waiting = asyncio.create_task(b.posted())
            await until(lambda: admin.info("commandstats").get("cmdstat_xadd", {}).get("rejected_calls"))
            await b.leave_group("none")  # written and answered meanwhile
            assert not waiting.done()
            admin.config_set("maxmemory", "0")
            await waiting
            assert admin.xlen(f"asgibus:mailbox:{a.mailbox}") == 3
            await until(lambda: reader.frames == [(KIND, 0), (KIND, 1)])
        await layer.close()


@pytest.mark.usefixtures("regroup")
async def test_redis_returns_without_its_data(start_redis: StartRedis) -> None:
    """Mailboxes and memberships are restored at once, and workers continue to claim."""
    server = start_redis()
    layer = RedisChannelLayer(server.url)
    reader = Recorder()
    claimed: list[int] = []
    async with layer.bus("a", reader) as a, layer.bus("w", Recorder()) as worker:
        await a.join_group("group")
        claiming = asyncio.create_task(claim_all(worker, claimed))
        a.offer("x", (1,))
        await until(lambda: claimed == [1])
        await asyncio.to_thread(server.kill)
        a.offer("x", (2,))
        await asyncio.to_thread(server.start)
        await until(lambda: claimed == [1, 2])
        with redis.Redis.from_url(server.url, protocol=2) as admin:
            await until(lambda: admin.zcard("asgibus:group:group") == 1)
        worker.post(a.mailbox, (KIND, 3))
        await layer.group_send("group", {"n": 4})
        await until(lambda: len(reader.frames) == 2)
        assert reader.frames == [(KIND, 3), (GROUP_MESSAGE, "group", {"n": 4})]
        worker.stop_claiming()
        await asyncio.wait_for(claiming, 30)
    await layer.close()


async def test_offers_withdrawn_in_an_outage_are_never_written(start_redis: StartRedis) -> None:
    """Offers that were withdrawn in an outage are never written, so that they do not flood Redis afterwards."""
    server = start_redis()
    layer = RedisChannelLayer(server.url)
    async with layer.bus("a", Recorder()) as a:
        await asyncio.to_thread(server.kill)
        a.offer("x", ("in flight when the connection is found lost",))
        await asyncio.sleep(0)
        for number in range(1000):
            a.withdraw(a.offer("x", (number,)))
        a.offer("x", ("kept",))
        await asyncio.to_thread(server.start)
        with redis.Redis.from_url(server.url, protocol=2) as admin:
            await until(lambda: any(b"kept" in entry[b"b"] for _, entry in admin.xrange("asgibus:shared:x")))
            assert admin.info("commandstats")["cmdstat_xadd"]["calls"] <= 3  # these two, and the mailbox
    await layer.close()


async def test_a_stop_waits_a_bounded_time_for_redis(start_redis: StartRedis) -> None:
    """A process that stops waits once, for a few seconds, to send its last frames to an unreachable Redis."""
    server = start_redis()
    layer = RedisChannelLayer(server.url)
    loop = asyncio.get_running_loop()
    async with layer.bus("a", Recorder()) as a, layer.bus("b", Recorder()) as b:
        claiming = asyncio.create_task(b.claim(["x"], 1))
        await a.join_group("group")
        await asyncio.to_thread(server.kill)
        a.post(b.mailbox, (KIND, 1))
        await asyncio.wait([claiming], timeout=0.1)
        stopped = loop.time()
        b.stop_claiming()
        assert await asyncio.wait_for(claiming, HANG) == []
        in_time(loop.time() - stopped, 2)
        started = loop.time()
    await layer.close()
    in_time(loop.time() - started, 8)


async def test_damaged_entries_are_skipped_and_logged(
    layer: RedisChannelLayer, admin: "redis.Redis[bytes]", caplog: pytest.LogCaptureFixture
) -> None:
    reader = Raising()
    damaged = [b"", b"\xc1", b"noise", pack(5), pack((2, 2)), pack((99, "s", ())), pack({"a": 1}), b"\x94\x02"]
    damaged += [pack((PAYLOAD_VERSION, "sender", 5)), pack((PAYLOAD_VERSION, 5, ()))]
    async with layer.bus("a", reader) as a:
        key = f"asgibus:mailbox:{a.mailbox}"
        for data in [*damaged, pack((PAYLOAD_VERSION, "sender", ((RAISES,),)))]:
            admin.xadd(key, {"b": data})
        admin.xadd(key, {"b": pack((PAYLOAD_VERSION, "sender", ((KIND, "good"),)))})
        await until(lambda: reader.frames)
        assert reader.batches == [("sender", [(KIND, "good")])]
        assert caplog.text.count("was dropped") == len(damaged)
        assert caplog.text.count("handling entry") == 1

        caplog.clear()
        for data in (b"\xc1", b"", pack(("good",))):
            admin.xadd("asgibus:shared:x", {"b": data})
        (claim,) = await asyncio.wait_for(a.claim(["x"], 10), 30)
        assert claim.entry == ("good",)
        assert caplog.text.count("was dropped") == 2
        a.done(claim)

    caplog.clear()
    now = b"%d:1:" % round(time.time() * 1000)
    items = [pack({"no": "stamp"}), now, now + b"\xc1", now + pack(("no dict",)), b"noise", b"1:x:", b"\xff" * 9]
    for _ in range(2):  # by the script, and by the command that waits
        admin.rpush("asgibus:channel:c", *items, now + pack({"good": True}))
        assert await layer.receive("c") == {"good": True}
    assert caplog.text.count("was dropped") == 2 * len(items)
    admin.rpush("asgibus:channel:c", *items, now + pack({"good": True}))
    async with layer.bus("a", Recorder()) as a:
        async with asyncio.timeout(30):
            (delivery,) = await a.take("c", 1)
        assert delivery.message == {"good": True}
        a.acknowledge(delivery)
    assert caplog.text.count("was dropped") == 3 * len(items)
    assert not admin.exists("asgibus:taken:{asgibus:channel:c}")
