"""The Lua scripts by themselves. They need no blocking read, so fakeredis can stand in for Redis here.

It knows no script flags (`#!lua`), so that line is left out for it; what the flags do is tested with a real Redis.
"""

import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis

from asgibus.layers.redis import scripts

Run = Callable[..., Any]

HOUR = 3_600_000


@pytest.fixture
def store(any_redis_url: str) -> Iterator["redis.Redis[bytes]"]:
    with redis.Redis.from_url(any_redis_url, protocol=2, socket_timeout=10) as client:
        yield client


@pytest.fixture
def run(store: "redis.Redis[bytes]") -> Run:
    def run(script: str, key: str, *arguments: Any) -> Any:
        return store.eval(script.removeprefix("#!lua\n"), 1, key, *arguments)

    return run


def test_a_channel_is_read_in_order_and_each_message_once(run: Run) -> None:
    assert [run(scripts.SEND, "c", payload, 10, HOUR) for payload in ("a", "b")] == [1, 1]
    assert [run(scripts.RECEIVE, "c", HOUR) for _ in range(3)] == [b"a", b"b", None]


def test_a_full_channel_takes_nothing_until_it_is_read(run: Run) -> None:
    assert [run(scripts.SEND, "c", "x", 2, HOUR) for _ in range(3)] == [1, 1, 0]
    run(scripts.RECEIVE, "c", HOUR)
    assert run(scripts.SEND, "c", "x", 2, HOUR) == 1


def test_what_has_expired_is_not_delivered_and_does_not_count(run: Run, store: "redis.Redis[bytes]") -> None:
    long_ago = round((time.time() - 100) * 1000)
    store.xadd("c", {"m": b"old"}, id=f"{long_ago}-0")
    assert run(scripts.SEND, "c", "new", 1, 60_000) == 1
    assert run(scripts.RECEIVE, "c", 60_000) == b"new"
    store.xadd("d", {"m": b"old"}, id=f"{long_ago}-0")
    assert run(scripts.RECEIVE, "d", 60_000) is None


def test_memberships_end(run: Run, store: "redis.Redis[bytes]") -> None:
    run(scripts.GROUP_ADD, "g", "a!", 60)
    store.zadd("g", {"gone!": (time.time() - 1) * 1000})
    now, members = run(scripts.GROUP_MEMBERS, "g")
    assert members == [b"a!"]
    assert abs(now / 1000 - time.time()) < 5
    run(scripts.GROUP_ADD, "g", "b!", 60)
    assert store.zrange("g", 0, -1) == [b"a!", b"b!"]


def test_only_what_nobody_has_claimed_is_withdrawn(run: Run, store: "redis.Redis[bytes]") -> None:
    store.xgroup_create("s", "workers", "0", mkstream=True)
    claimed, waiting = store.xadd("s", {"b": b"1"}), store.xadd("s", {"b": b"2"})
    store.xreadgroup("workers", "w", {"s": ">"}, count=1)
    assert [run(scripts.WITHDRAW, "s", entry) for entry in (claimed, waiting)] == [0, 1]
    assert [entry for entry, _ in store.xrange("s")] == [claimed]


def test_offers_are_found_by_their_id_or_by_what_they_hold(run: Run, store: "redis.Redis[bytes]") -> None:
    assert run(scripts.FIND_OFFERS, "s", "0-0", 10, "", "0", "1-1", "1") == [b"", b""]
    store.xgroup_create("s", "workers", "0", mkstream=True)
    claimed, waiting, moved, done = (store.xadd("s", {"b": b"%d" % number}) for number in range(4))
    store.xreadgroup("workers", "w", {"s": ">"}, count=1)
    store.xdel("s", done)
    ids_and_payloads = ("", "0", waiting, "1", "1-1", "2", done, "3", "", "4")
    assert run(scripts.FIND_OFFERS, "s", "0-0", 10, *ids_and_payloads) == [claimed, waiting, moved, b"", b""]
    assert run(scripts.FIND_OFFERS, "s", "0-0", 1, *ids_and_payloads) == [b"?", waiting, moved, b"?", b"?"]
    assert run(scripts.FIND_OFFERS, "s", moved, 10, *ids_and_payloads) == [b"", waiting, moved, b"", b""]
    assert [entry for entry, _ in store.xrange("s")] == [claimed, waiting, moved]


@pytest.mark.parametrize("grace", [True, False], ids=["grace", "no grace"])
def test_a_clock_that_is_put_back_lengthens_no_lease(grace: bool, run: Run, store: "redis.Redis[bytes]") -> None:
    ahead = time.time() * 1000 + HOUR
    store.zadd("p", {"a!": ahead + 1000, "b!": ahead + 3000, "beaten": ahead, "epoch:1": math.inf})
    if grace:
        store.zadd("p", {"grace": ahead + 5000})
    times = (5_000, 3_000, 10_000, 60_000)  # the lease, silence, grace, listed
    lapsed, in_grace, now, next_end, live, ended, epoch = run(scripts.RENEW, "p", "own!", *times)
    longest = 10_000 if grace else 5_000
    assert {name: score - now for name, score in store.zrange("p", 0, -1, withscores=True)} == {
        b"a!": longest,
        b"b!": longest,
        b"own!": 5_000,
        b"beaten": 0,
        b"epoch:1": math.inf,
        **({b"grace": 10_000} if grace else {}),
    }
    assert (lapsed, in_grace, next_end, epoch) == (1, int(grace), longest, b"epoch:1")
    assert (sorted(live), ended) == ([b"a!", b"b!", b"own!"], [])


def test_an_epoch_lasts_until_the_last_process_leaves(run: Run, store: "redis.Redis[bytes]") -> None:
    times = (5_000, 3_000, 10_000, 0)
    *_, now, _, _, _, first = run(scripts.RENEW, "p", "a!", *times)
    assert first == b"epoch:%d" % now
    assert store.zrange("p", "+inf", "+inf", byscore=True) == [first]
    store.zrem("p", first)
    first = b"epoch:1"
    store.zadd("p", {first: math.inf})
    store.zadd("p", {"beaten": now - HOUR, "grace": now - HOUR, "a!": now - HOUR})
    assert run(scripts.RENEW, "p", "b!", *times)[-1] == first
    assert run(scripts.RENEW, "p", "a!", *times)[-1] == first
    assert store.zrange("p", "+inf", "+inf", byscore=True) == [first]
    assert [run(scripts.END_LEASE, "p", mailbox) for mailbox in ("a!", "b!")] == [0, 1]
    assert not store.exists("p")


def test_a_claim_that_is_handed_back_goes_to_another_claimant(run: Run, store: "redis.Redis[bytes]") -> None:
    store.xgroup_create("s", "workers", "0", mkstream=True)
    entry = store.xadd("s", {"b": b"1"})
    store.xreadgroup("workers", "first", {"s": ">"})
    run(scripts.HAND_BACK, "s", entry)
    [[_, [(_, fields)]]] = store.xreadgroup("workers", "second", {"s": ">"})
    assert fields == {b"b": b"1"}


def test_a_claimant_that_leaves_gives_back_what_it_holds(run: Run, store: "redis.Redis[bytes]") -> None:
    store.xgroup_create("s", "workers", "0", mkstream=True)
    for number in range(3):
        store.xadd("s", {"b": b"%d" % number})
    store.xreadgroup("workers", "first", {"s": ">"})
    run(scripts.LEAVE, "s", "first")
    [[_, entries]] = store.xreadgroup("workers", "second", {"s": ">"})
    assert [fields[b"b"] for _, fields in entries] == [b"0", b"1", b"2"]
    assert [consumer["name"] for consumer in store.xinfo_consumers("s", "workers")] == [b"second"]
