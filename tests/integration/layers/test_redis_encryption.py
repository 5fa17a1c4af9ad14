"""Encryption on a real Redis: the stored data, key rotation under load, and peers with other keys."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import redis

from asgibus.layers import RedisChannelLayer
from asgibus.layers.codec import pack
from asgibus.layers.frames import FIRST_PROTOCOL_KIND
from asgibus.layers.redis import heartbeat
from asgibus.layers.redis.encryption import Encryptor
from asgibus.layers.redis.pipeline import PAYLOAD_VERSION
from support.bus import Recorder, until

pytestmark = pytest.mark.anyio

KIND = FIRST_PROTOCOL_KIND
MARKER = "plaintext-marker"
Make = Callable[..., RedisChannelLayer]


@pytest.fixture
async def make(redis_url: str) -> AsyncIterator[Make]:
    """Provide layers with given keys, closed at the end."""
    layers_made: list[RedisChannelLayer] = []

    def make(*keys: str | bytes) -> RedisChannelLayer:
        layers_made.append(RedisChannelLayer(redis_url, symmetric_encryption_keys=keys))
        return layers_made[-1]

    yield make
    for layer in layers_made:
        await layer.close()


def all_data(admin: "redis.Redis[bytes]") -> bytes:
    """Return all data that a reader of Redis sees."""
    data: list[Any] = []
    for key in admin.scan_iter(count=1000):
        kind = admin.type(key)
        data.append(key)
        if kind == b"stream":
            data.append(admin.xrange(key))
        elif kind == b"list":
            data.append(admin.lrange(key, 0, -1))
        elif kind == b"hash":
            data.append(admin.hgetall(key))
        elif kind == b"zset":
            data.append(admin.zrange(key, 0, -1))
        elif kind == b"set":
            data.append(admin.smembers(key))
        else:
            raise AssertionError(f"{key!r} is a {kind!r}")
    return repr(data).encode()


def logged(caplog: pytest.LogCaptureFixture, text: str) -> list[str]:
    return [record.getMessage() for record in caplog.records if text in record.getMessage()]


# Data in Redis.


async def test_redis_holds_no_plaintext(make: Make, admin: "redis.Redis[bytes]") -> None:
    layer, message = make("secret"), {"text": MARKER, "b": MARKER.encode()}
    async with layer.bus("a", Recorder()) as a, layer.bus("b", Recorder()) as b:
        local = await layer.new_channel()
        await layer.send("taken", message)
        (delivery,) = await b.take("taken", 1)
        await layer.send("given", message)
        (returned,) = await b.take("given", 1)
        b.give_back(returned, delay=60)
        await layer.send("again", message)
        (again,) = await b.take("again", 1)
        b.give_back(again)
        b.offer("offered", (MARKER, message))
        b.post(a.mailbox, (KIND, MARKER, message))
        for channel in ("ordinary", "delayed", local, a.mailbox + "x"):
            await layer.send(channel, message, delay=60 if channel == "delayed" else 0)
            await layer.group_add("group", channel)
        await a.join_group("group")
        await layer.group_send("group", message)
        await layer.declare_dead("worker.0123456789abcdef!")
        await b.drain()
        data = all_data(admin)
        for kind in (b"taken:", b"delayed:", b"shared:", b"mailbox:", b"channel:ordinary", b"channel:again"):
            assert kind in data
        assert MARKER.encode() not in data
        assert b"worker.0123456789abcdef" not in data
        assert delivery.message == returned.message == again.message == message
    await layer.close()
    assert MARKER.encode() not in all_data(admin)
    assert await layer.receive("taken") == message  # put back at the end


async def test_delayed_and_returned_messages_are_decrypted(make: Make) -> None:
    """Messages and offers that were delayed, given back or taken over are decrypted at their place."""
    layer = make("secret")
    await layer.send("x", {"n": 1}, delay=0.05)
    async with layer.bus("w", Recorder()) as worker:
        (first,) = await worker.take("x", 1)
        worker.give_back(first)
        (second,) = await worker.take("x", 1)
        worker.give_back(second, delay=0.05)
        (third,) = await worker.take("x", 1)
        assert (third.attempt, third.message) == (3, {"n": 1})
    async with layer.bus("i", Recorder()) as interface:
        async with layer.bus("w", Recorder()) as worker:
            claiming = asyncio.create_task(worker.claim(["s"], 10))
            interface.offer("s", ("a",))
            (claim,) = await claiming
            assert claim.entry == ("a",)
        interface.offer("s", ("b",))
        async with layer.bus("w", Recorder()) as other:
            claims = []
            async with asyncio.timeout(30):
                while len(claims) < 1:
                    claims += await other.claim(["s"], 10)
            assert {each.entry for each in claims} <= {("a",), ("b",)}
            for each in claims:
                other.done(each)


async def test_moved_or_altered_entries_are_dropped(
    make: Make, admin: "redis.Redis[bytes]", caplog: pytest.LogCaptureFixture
) -> None:
    layer, reader = make("secret"), Recorder()
    await layer.send("from", {"n": "moved"})
    (item,) = admin.lrange("asgibus:channel:from", 0, -1)
    async with layer.bus("a", reader) as a, layer.bus("b", Recorder()) as b:
        b.offer("other", ("moved",))
        await b.drain()
        ((_, offered),) = admin.xrange("asgibus:shared:other")
        admin.rpush("asgibus:channel:to", item, item[:-1] + bytes([item[-1] ^ 1]))
        admin.xadd("asgibus:shared:to", {"b": offered[b"b"]})
        admin.xadd(f"asgibus:mailbox:{a.mailbox}", {"b": offered[b"b"]})
        await layer.send("to", {"n": "good"})
        b.offer("to", ("good",))
        b.post(a.mailbox, (KIND, "good"))
        assert await layer.receive("to") == {"n": "good"}
        (claim,) = await asyncio.wait_for(a.claim(["to"], 10), 30)
        assert claim.entry == ("good",)
        a.done(claim)
        await until(lambda: reader.frames)
        assert reader.frames == [(KIND, "good")]
    assert layer.counts["damaged entry"] == len(logged(caplog, "altered, or moved from elsewhere")) == 4


async def test_plaintext_entries_are_dropped_by_a_layer_with_keys(
    make: Make, admin: "redis.Redis[bytes]", caplog: pytest.LogCaptureFixture
) -> None:
    layer, reader = make("secret"), Recorder()
    async with layer.bus("a", reader) as a:
        for number in range(5):
            admin.rpush("asgibus:channel:c", b"%d:1:%b" % (round(time.time() * 1000), pack({"n": number})))
            admin.xadd(f"asgibus:mailbox:{a.mailbox}", {"b": pack((PAYLOAD_VERSION, "", [(KIND, number)]))})
        await layer.send("c", {"n": "good"})
        a.post(a.mailbox, (KIND, "good"))
        assert await layer.receive("c") == {"n": "good"}
        await until(lambda: reader.frames)
        assert reader.frames == [(KIND, "good")]
    assert layer.counts["entry not sealed"] == 10
    (line,) = logged(caplog, "is not sealed")
    assert "give whoever wrote it the encryption key" in line


# Other keys.


@pytest.mark.parametrize("reader_keys", [("old", "new"), ("new", "old")], ids="+".join)
@pytest.mark.parametrize("writer_keys", [("old",), ("old", "new"), ("new", "old")], ids="+".join)
async def test_keys_are_rotated_under_traffic(
    make: Make, writer_keys: tuple[str, ...], reader_keys: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    """No process misses a frame at any step of a key rotation."""
    reader, writer = make(*reader_keys), make(*writer_keys)
    received, answers = Recorder(), Recorder()
    async with reader.bus("a", received) as a, writer.bus("b", answers) as b:
        await writer.send("x", {"n": 1})
        assert await reader.receive("x") == {"n": 1}
        b.post(a.mailbox, (KIND, 1))
        local = await reader.new_channel()
        await writer.send(local, {"n": 2})
        assert await reader.receive(local) == {"n": 2}
        b.offer("s", (3,))
        (claim,) = await asyncio.wait_for(a.claim(["s"], 1), 30)
        assert claim.entry == (3,)
        a.done(claim)
        if reader_keys[0] in writer_keys:
            a.post(b.mailbox, (KIND, 4))
            await until(lambda: answers.frames == [(KIND, 4)])
        await until(lambda: received.frames == [(KIND, 1)])
    assert not logged(caplog, "was dropped")


@pytest.mark.parametrize("keys", [(), ("other",), ("other", "another")], ids=["no key", "other", "others"])
async def test_a_peer_with_another_key_is_logged_once(
    make: Make, keys: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    right, too, wrong = make("secret"), make("secret"), make(*keys)
    readers = [Recorder(), Recorder(), Recorder()]
    async with right.bus("a", readers[0]) as a, too.bus("b", readers[1]) as b, wrong.bus("c", readers[2]) as c:
        await right.send("x", {"n": 0})
        receiving = asyncio.create_task(wrong.receive("x"))
        claiming = asyncio.create_task(c.claim(["s"], 10))
        for number in range(20):
            a.post(b.mailbox, (KIND, number))
            a.post(c.mailbox, (KIND, number))
            c.post(a.mailbox, (KIND, number))
            c.post(b.mailbox, (KIND, number))
            await a.drain()
            await c.drain()
        unknown = "entry of unknown key"
        await until(lambda: readers[1].frames == [(KIND, number) for number in range(20)])
        await until(lambda: wrong.counts[unknown] == 20 + 1)  # posts, the message
        other = unknown if keys else "entry not sealed"
        await until(lambda: right.counts[other] == too.counts[other] == 20)
        assert readers[0].frames == readers[2].frames == []

        c.offer("s", ("own",))  # processes with the same key still work together
        await wrong.send("x", {"n": "own"})
        assert await asyncio.wait_for(receiving, 30) == {"n": "own"}
        (claim,) = await asyncio.wait_for(claiming, 30)
        assert claim.entry == ("own",)
        c.done(claim)
    lines = logged(caplog, "was dropped, as all like it will be")
    assert len(lines) == 3  # one for each layer
    secret, known = Encryptor(["secret"]).key_ids[0], ", ".join(Encryptor(keys).key_ids) if keys else "none"
    (line,) = [line for line in lines if f"(known here: {known})" in line]
    assert f"sealed with the key {secret}: give this process that encryption key" in line


@pytest.mark.parametrize("keys", [(), ("other",)], ids=["no key", "other"])
async def test_an_unreadable_offer_is_claimed_by_another_worker(
    make: Make, keys: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    offering, right, wrong = make("secret"), make("secret"), make(*keys)
    async with (
        offering.bus("interface", Recorder()) as interface,
        wrong.bus("worker", Recorder()) as incompatible,
        right.bus("worker", Recorder()) as compatible,
    ):
        claiming = asyncio.create_task(incompatible.claim(["s"], 10))
        offers = [interface.offer("s", (number,)) for number in range(5)]
        await until(lambda: incompatible.unreadable)
        for number in range(5):
            claims = await asyncio.wait_for(compatible.claim(["s"], 1), 30)
            assert [claim.entry for claim in claims] == [(number,)]
            compatible.done(claims[0])
        for number in range(5, 10):
            offers.append(interface.offer("s", (number,)))
            claims = await asyncio.wait_for(compatible.claim(["s"], 10), 30)
            assert [claim.entry for claim in claims] == [(number,)]
            compatible.done(claims[0])
        assert compatible.unreadable is None
        assert "give" in str(incompatible.unreadable)

        incompatible.stop_claiming()
        assert await asyncio.wait_for(claiming, 5) == []
    assert len(logged(caplog, "claims next to nothing")) == 1
    assert wrong.counts["unreadable entry"] == 0


async def test_unreadable_offers_are_withdrawn_and_block_no_others(make: Make, admin: "redis.Redis[bytes]") -> None:
    right, wrong = make("secret"), make("other")
    async with (
        right.bus("interface", Recorder()) as interface,
        wrong.bus("interface", Recorder()) as incompatible,
        right.bus("worker", Recorder()) as worker,
    ):
        interface.offer("s", ("good",))
        (claim,) = await asyncio.wait_for(worker.claim(["s"], 10), 30)
        worker.done(claim)
        unread = [incompatible.offer("s", (number,)) for number in range(3)]
        await incompatible.drain()
        interface.offer("s", ("behind",))
        (claim,) = await asyncio.wait_for(worker.claim(["s"], 10), 30)
        assert claim.entry == ("behind",)
        worker.done(claim)
        await worker.drain()
        assert worker.unreadable is None
        for offer in unread:
            incompatible.withdraw(offer)
        await incompatible.drain()
        assert admin.xlen("asgibus:shared:s") == 0


async def test_an_unreadable_message_is_taken_by_another_worker(make: Make) -> None:
    sender, right, wrong = make("secret"), make("secret"), make("other")
    async with wrong.bus("worker", Recorder()) as incompatible, right.bus("worker", Recorder()) as compatible:
        taking = asyncio.create_task(incompatible.take("work", 10))
        await sender.send("work", {"n": 1})
        await until(lambda: incompatible.unreadable)
        (delivery,) = await asyncio.wait_for(compatible.take("work", 10), 30)
        assert (delivery.message, delivery.attempt) == ({"n": 1}, 1)
        compatible.acknowledge(delivery)
        incompatible.stop_claiming()
        assert await asyncio.wait_for(taking, 5) == []


async def test_a_process_decrypts_its_own_notices(
    make: Make, admin: "redis.Redis[bytes]", monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process decrypts its own notices: of a process that left, and of an offer to repeat."""
    monkeypatch.setattr(heartbeat, "GRACE_SECONDS", 0.1)
    layer, reader = make("new", "old"), Recorder()
    async with layer.bus("a", reader) as a:
        async with make("old", "new").bus("b", Recorder()) as b:
            b.post(a.mailbox, (KIND, 1))
            await until(lambda: reader.frames)
        offer = a.offer("s", (1,))
        await a.drain()
        assert admin.xtrim("asgibus:shared:s", maxlen=0, approximate=False) == 1
        a.offer_again(offer, lambda: None)
        await until(lambda: admin.xlen("asgibus:shared:s"))
        await until(lambda: b.mailbox in reader.dead)
    assert not layer.counts["entry not sealed"] + layer.counts["damaged entry"]
