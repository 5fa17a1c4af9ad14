"""Encryption of what is in Redis: what a thief sees, keys that change while all runs, and peers with other keys."""

import asyncio
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from asgibus.layers import RedisChannelLayer, open_layer
from asgibus.layers.codec import pack
from asgibus.layers.frames import FIRST_PROTOCOL_KIND
from asgibus.layers.redis import heartbeat
from asgibus.layers.redis.codec import FOREIGN_KEYS, EntryCodec, NotSealed, UnknownKey
from asgibus.layers.redis.encryption import HEAD_BYTES, TAG_BYTES, Encryptor, ExtendedNonceCipher
from asgibus.layers.redis.pipeline import PAYLOAD_VERSION
from support.bus import Recorder, until

pytestmark = pytest.mark.anyio

KIND = FIRST_PROTOCOL_KIND
REFUSED = (NotSealed, UnknownKey, ValueError)
MARKER = "plaintext-marker"
PLACE = "asgibus:mailbox:a!"
SEALED_BY_THE_FIRST_RELEASE = (
    "c1020a5b4310000102030405060708090a0b0c0d0e0f101112131415161748805957044158d8d27004455b3413eb58ea564a"
)

Make = Callable[..., RedisChannelLayer]


@pytest.fixture
async def make(redis_url: str) -> AsyncIterator[Make]:
    """A layer with these keys, closed at the end."""
    made: list[RedisChannelLayer] = []

    def make(*keys: str | bytes) -> RedisChannelLayer:
        made.append(RedisChannelLayer(redis_url, symmetric_encryption_keys=keys))
        return made[-1]

    yield make
    for layer in made:
        await layer.close()


def everything(admin: "redis.Redis[bytes]") -> bytes:
    """All that somebody sees who can read Redis."""
    seen: list[Any] = []
    for key in admin.scan_iter(count=1000):
        kind = admin.type(key)
        seen.append(key)
        if kind == b"stream":
            seen.append(admin.xrange(key))
        elif kind == b"list":
            seen.append(admin.lrange(key, 0, -1))
        elif kind == b"hash":
            seen.append(admin.hgetall(key))
        elif kind == b"zset":
            seen.append(admin.zrange(key, 0, -1))
        elif kind == b"set":
            seen.append(admin.smembers(key))
        else:
            raise AssertionError(f"{key!r} is a {kind!r}")
    return repr(seen).encode()


def logged(caplog: pytest.LogCaptureFixture, text: str) -> list[str]:
    return [record.getMessage() for record in caplog.records if text in record.getMessage()]


# The seal itself.


@given(
    st.binary(max_size=500), st.text(max_size=30), st.lists(st.binary(min_size=1), min_size=1, max_size=4), st.data()
)
def test_what_is_sealed_is_opened_with_each_of_the_keys(
    data: bytes, place: str, secrets: list[bytes], draw: st.DataObject
) -> None:
    first = draw.draw(st.sampled_from(secrets))
    sealed = Encryptor([first]).encrypt(place, data)
    assert Encryptor(secrets).decrypt(place, sealed) == data
    assert len(sealed) == HEAD_BYTES + len(data) + TAG_BYTES


@given(st.binary(max_size=100), st.data())
def test_what_was_altered_or_cut_off_is_not_opened(data: bytes, draw: st.DataObject) -> None:
    seal = Encryptor(["a", "b"])
    sealed = seal.encrypt(PLACE, data)
    at = draw.draw(st.integers(0, len(sealed) - 1))
    changed = sealed[at] ^ draw.draw(st.integers(1, 255))
    for wrong in (sealed[:at] + bytes([changed]) + sealed[at + 1 :], sealed[:at], sealed + b"x"):
        with pytest.raises(REFUSED):
            seal.decrypt(PLACE, wrong)


@pytest.mark.parametrize("at", [*range(HEAD_BYTES), -TAG_BYTES - 1, -TAG_BYTES, -1])
def test_every_part_is_protected(at: int) -> None:
    seal = Encryptor(["a"])
    sealed = bytearray(seal.encrypt(PLACE, b"data"))
    sealed[at] ^= 1
    with pytest.raises(REFUSED) as raised:
        seal.decrypt(PLACE, bytes(sealed))
    expected = NotSealed if at == 0 else UnknownKey if 2 <= at < 6 else ValueError
    assert type(raised.value) is expected


def test_an_entry_is_of_one_place_only() -> None:
    seal = Encryptor(["a"])
    with pytest.raises(ValueError, match="moved from elsewhere"):
        seal.decrypt("asgibus:mailbox:b!", seal.encrypt(PLACE, b"data"))


def test_the_same_is_never_sealed_the_same_way() -> None:
    seal = Encryptor(["a"])
    assert len({seal.encrypt(PLACE, b"data") for _ in range(1000)}) == 1000


@pytest.mark.parametrize(
    ("key", "associated", "ciphertext"),
    [
        (b"\x01" * 32, b"", "ce546ef63c9cc60765923609b33a9a1974e96e52daf2fcf7075e2271"),
        (
            b"\x03" * 32,
            b"c2sp.org/XAES-256-GCM",
            "986ec1832593df5443a179437fd083bf3fdb41abd740a21f71eb769d",
        ),
    ],
)
def test_the_cipher_is_xaes_256_gcm(key: bytes, associated: bytes, ciphertext: str) -> None:
    """The vectors of its specification, one for each value of the highest bit that the subkey is made of."""
    cipher, nonce = ExtendedNonceCipher(key), b"ABCDEFGHIJKLMNOPQRSTUVWX"
    assert cipher.encrypt(nonce, b"XAES-256-GCM", associated).hex() == ciphertext
    assert cipher.decrypt(nonce, bytes.fromhex(ciphertext), associated) == b"XAES-256-GCM"


def test_threads_may_seal_and_open_at_once() -> None:
    seal = Encryptor(["a"])

    def work(number: int) -> bool:
        data = number.to_bytes(4)
        return all(seal.decrypt(PLACE, seal.encrypt(PLACE, data)) == data for _ in range(200))

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(work, range(32)))


def test_later_releases_open_entries_of_the_first_one() -> None:
    sealed = bytes.fromhex(SEALED_BY_THE_FIRST_RELEASE)
    assert Encryptor(["other", "secret"]).decrypt(PLACE, sealed) == b"data"
    assert Encryptor([b"secret"]).key_ids == Encryptor(["secret"]).key_ids == [sealed[2:6].hex()]


@pytest.mark.parametrize("keys", ["secret", b"secret", [""], [b"", "a"], [5], [None]])
def test_what_is_no_list_of_keys_is_refused(keys: Any) -> None:
    with pytest.raises(ValueError, match="encryption key"):
        RedisChannelLayer(symmetric_encryption_keys=keys)


def test_without_the_library_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.ciphers.aead", None)
    monkeypatch.delitem(sys.modules, "asgibus.layers.redis.encryption")
    with pytest.raises(ValueError, match=r"pip install 'asgibus\[encryption\]'"):
        open_layer("redis://127.0.0.1:1", encryption_keys=["secret"])
    open_layer("redis://127.0.0.1:1")


def test_keys_mean_nothing_to_the_memory_layer() -> None:
    open_layer("memory://", encryption_keys=["secret"])


def test_made_up_keys_do_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    counts: Counter[str] = Counter()
    entries = EntryCodec(Encryptor(["a"]), counts)
    for number in range(1000):
        entries.refused(PLACE, "1-1", UnknownKey(f"{number:08x}"))
    assert len(caplog.records) == FOREIGN_KEYS
    assert counts["entry of unknown key"] == 1000


# What is in Redis.


async def test_nobody_reads_in_redis_what_was_sent(make: Make, admin: "redis.Redis[bytes]") -> None:
    layer, message = make("secret"), {"text": MARKER, "b": MARKER.encode()}
    async with layer.bus("a", Recorder()) as a, layer.bus("b", Recorder()) as b:
        local = await layer.new_channel()
        await layer.send("taken", message)
        (delivery,) = await b.take("taken", 1)
        await layer.send("given", message)
        (given,) = await b.take("given", 1)
        b.give_back(given, delay=60)
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
        seen = everything(admin)
        for kind in (b"taken:", b"delayed:", b"shared:", b"mailbox:", b"channel:ordinary", b"channel:again"):
            assert kind in seen
        assert MARKER.encode() not in seen
        assert b"worker.0123456789abcdef" not in seen
        assert delivery.message == given.message == again.message == message
    await layer.close()
    assert MARKER.encode() not in everything(admin)
    assert await layer.receive("taken") == message  # put back at the end


async def test_what_was_put_aside_is_opened_when_it_is_back(make: Make) -> None:
    """Delayed, given back (at once and later), handed back and taken over: each is still at its place."""
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


async def test_an_entry_that_was_moved_or_altered_is_dropped(
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


async def test_what_is_not_sealed_is_refused_where_there_are_keys(
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
async def test_keys_change_while_all_runs(
    make: Make, writer_keys: tuple[str, ...], reader_keys: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    """One step of a rotation at a time: nobody misses anything of anybody."""
    reader, writer = make(*reader_keys), make(*writer_keys)
    got, back = Recorder(), Recorder()
    async with reader.bus("a", got) as a, writer.bus("b", back) as b:
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
            await until(lambda: back.frames == [(KIND, 4)])
        await until(lambda: got.frames == [(KIND, 1)])
    assert not logged(caplog, "was dropped")


@pytest.mark.parametrize("keys", [(), ("other",), ("other", "another")], ids=["no key", "other", "others"])
async def test_a_peer_with_another_key_is_one_line_and_nobody_s_end(
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

        c.offer("s", ("own",))  # it goes on with its own kind
        await wrong.send("x", {"n": "own"})
        assert await asyncio.wait_for(receiving, 30) == {"n": "own"}
        (claim,) = await asyncio.wait_for(claiming, 30)
        assert claim.entry == ("own",)
        c.done(claim)
    lines = logged(caplog, "was dropped, as all like it will be")
    assert len(lines) == 3  # one for each layer
    secret, own = Encryptor(["secret"]).key_ids[0], ", ".join(Encryptor(keys).key_ids) if keys else "none"
    (said,) = [line for line in lines if f"(known here: {own})" in line]
    assert f"sealed with the key {secret}: give this process that encryption key" in said


@pytest.mark.parametrize("keys", [(), ("other",)], ids=["no key", "other"])
async def test_what_a_claimant_cannot_read_goes_to_another_one(
    make: Make, keys: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    offering, right, wrong = make("secret"), make("secret"), make(*keys)
    async with (
        offering.bus("interface", Recorder()) as interface,
        wrong.bus("worker", Recorder()) as odd,
        right.bus("worker", Recorder()) as even,
    ):
        claiming = asyncio.create_task(odd.claim(["s"], 10))
        offers = [interface.offer("s", (number,)) for number in range(5)]
        await until(lambda: odd.unreadable)
        for number in range(5):
            claims = await asyncio.wait_for(even.claim(["s"], 1), 30)
            assert [claim.entry for claim in claims] == [(number,)]
            even.done(claims[0])
        for number in range(5, 10):
            offers.append(interface.offer("s", (number,)))
            claims = await asyncio.wait_for(even.claim(["s"], 10), 30)
            assert [claim.entry for claim in claims] == [(number,)]
            even.done(claims[0])
        assert even.unreadable is None
        assert "give" in str(odd.unreadable)

        odd.stop_claiming()
        assert await asyncio.wait_for(claiming, 5) == []
    assert len(logged(caplog, "claims next to nothing")) == 1
    assert wrong.counts["unreadable entry"] == 0


async def test_a_claimant_that_reads_others_goes_on_and_what_nobody_reads_is_withdrawn(
    make: Make, admin: "redis.Redis[bytes]"
) -> None:
    right, wrong = make("secret"), make("other")
    async with (
        right.bus("interface", Recorder()) as interface,
        wrong.bus("interface", Recorder()) as odd,
        right.bus("worker", Recorder()) as worker,
    ):
        interface.offer("s", ("good",))
        (claim,) = await asyncio.wait_for(worker.claim(["s"], 10), 30)
        worker.done(claim)
        unread = [odd.offer("s", (number,)) for number in range(3)]
        await odd.drain()
        interface.offer("s", ("behind",))
        (claim,) = await asyncio.wait_for(worker.claim(["s"], 10), 30)
        assert claim.entry == ("behind",)
        worker.done(claim)
        await worker.drain()
        assert worker.unreadable is None
        for offer in unread:
            odd.withdraw(offer)
        await odd.drain()
        assert admin.xlen("asgibus:shared:s") == 0


async def test_a_message_that_its_taker_cannot_read_goes_to_another_one(make: Make) -> None:
    sender, right, wrong = make("secret"), make("secret"), make("other")
    async with wrong.bus("worker", Recorder()) as odd, right.bus("worker", Recorder()) as even:
        taking = asyncio.create_task(odd.take("work", 10))
        await sender.send("work", {"n": 1})
        await until(lambda: odd.unreadable)
        (delivery,) = await asyncio.wait_for(even.take("work", 10), 30)
        assert (delivery.message, delivery.attempt) == ({"n": 1}, 1)
        even.acknowledge(delivery)
        odd.stop_claiming()
        assert await asyncio.wait_for(taking, 5) == []


async def test_what_a_process_tells_itself_is_understood(
    make: Make, admin: "redis.Redis[bytes]", monkeypatch: pytest.MonkeyPatch
) -> None:
    """That another has left, and that an offer is to be made again."""
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
