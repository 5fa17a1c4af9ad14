"""Single calls of the Lua scripts."""

import itertools
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
def store(redis_url: str) -> Iterator["redis.Redis[bytes]"]:
    with redis.Redis.from_url(redis_url, protocol=2, socket_timeout=30) as client:
        yield client


@pytest.fixture
def epoch(store: "redis.Redis[bytes]") -> bytes:
    """Return the name of an epoch that began on this server long ago."""
    run_id = store.info("server").get("run_id", "")
    return f"epoch:1:{run_id}".encode()


@pytest.fixture
def run(store: "redis.Redis[bytes]") -> Run:
    def run(script: str, keys: str | tuple[str, ...], *arguments: Any) -> Any:
        names = (keys,) if isinstance(keys, str) else keys
        return store.eval(script, len(names), *names, *arguments)

    return run


SENT = ("c", "delayed", "counts")
TAKEN = ("c", "delayed", "taken")
MARKER = b""


@pytest.fixture
def send(run: Run) -> Run:
    def send(payload: str, *, capacity: int = 10, expiry: int = HOUR, delay: int = 0, name: str = "id") -> Any:
        arguments = payload, expiry, HOUR, capacity, *((delay, name) if delay else ())
        sent = None if delay else run(scripts.CHANNEL_SEND, SENT, *arguments)
        return run(scripts.CHANNEL_SEND_CHECKED, SENT, *arguments) if sent is None else sent

    return send


@pytest.fixture
def take(run: Run) -> Run:
    """Return a function that takes messages and returns them as (attempt, payload)."""
    names = (f"name{number}" for number in itertools.count())

    def take(limit: int = 1, *, expiry: int = HOUR, consumer: str = "") -> list[tuple[bytes, bytes]]:
        acknowledged = (consumer, HOUR, next(names)) if consumer else ()
        _, _, *taken = run(scripts.CHANNEL_TAKE, TAKEN, expiry, limit, *acknowledged)
        return [tuple(item.split(b":", 2)[1:]) for item in taken[1::2]]

    return take


@pytest.fixture
def give_back(run: Run) -> Run:
    def give_back(*ids: bytes, delay: int = 0) -> Any:
        return run(scripts.CHANNEL_GIVE_BACK, TAKEN, HOUR, delay, 1, *ids)

    return give_back


def test_a_channel_is_read_in_order_and_each_message_once(send: Run, take: Run) -> None:
    assert [send(payload) for payload in ("a", "b", "c:d\n")] == [1, 1, 1]
    assert [take(), take(5), take()] == [[(b"1", b"a")], [(b"1", b"b"), (b"1", b"c:d\n")], []]


def test_a_full_channel_refuses_messages_until_one_is_read(send: Run, take: Run) -> None:
    assert [send("x", capacity=2), send("x", capacity=2, delay=HOUR), send("x", capacity=2)] == [1, 1, 0]
    assert send("x", capacity=2, delay=HOUR) == 0
    take(2)
    assert send("x", capacity=2) == 1


def test_the_marker_does_not_count_as_a_message(send: Run, run: Run, store: "redis.Redis[bytes]") -> None:
    assert [send("x", capacity=2, delay=HOUR), send("y", capacity=2), send("z", capacity=2)] == [1, 1, 0]
    (item,) = store.lrange("c", 0, -1)
    assert item.partition(b":")[2] == b"1:y"
    _, pending, *_ = run(scripts.CHANNEL_STATISTICS, SENT, HOUR)
    assert pending == 2


def test_expired_messages_are_not_delivered_and_do_not_count(send: Run, take: Run, store: "redis.Redis[bytes]") -> None:
    long_ago = round((time.time() - 100) * 1000)
    for again in range(2):
        for _ in range(3):
            store.rpush("c", b"%d:1:old" % long_ago)
        store.zadd("delayed", {"1:1:old": long_ago})
        if not again:
            assert send("new", capacity=1, expiry=60_000) == 1
            assert take(expiry=60_000) == [(b"1", b"new")]
    assert take(expiry=60_000) == []
    assert store.keys("*") == [b"counts"]


def test_invalid_items_are_counted_and_delivered_unchanged(
    send: Run, run: Run, take: Run, store: "redis.Redis[bytes]"
) -> None:
    """Items that were stored by mistake are counted and delivered unchanged."""
    invalid = [b"noise", b"1:", b"1:x:", b":"]
    store.rpush("c", *invalid)
    assert run(scripts.CHANNEL_STATISTICS, SENT, 60_000)[1] == len(invalid)
    assert send("good", capacity=len(invalid) + 1, expiry=60_000) == 1
    assert send("more", capacity=len(invalid) + 1, expiry=60_000) == 0
    _, _, *taken = run(scripts.CHANNEL_TAKE, TAKEN, 60_000, len(invalid))
    assert taken[1::2] == invalid
    store.lpush("c", *invalid)
    assert len(take(5, expiry=60_000, consumer="w.1!")) == 5
    assert store.hlen("taken") == 5


def test_a_delayed_message_is_taken_when_it_is_due(send: Run, run: Run, take: Run, store: "redis.Redis[bytes]") -> None:
    send("later", delay=100, name="x")
    send("at once")
    send("now")
    send("never", delay=HOUR, name="y")
    more, due, _, item = run(scripts.CHANNEL_TAKE, TAKEN, HOUR, 1)
    assert item.endswith(b":1:at once")
    assert more
    assert 0 < due <= 100
    more, due, _, item = run(scripts.CHANNEL_TAKE, TAKEN, HOUR, 1)
    assert item.endswith(b":1:now")
    assert not more
    assert store.lrange("c", 0, -1) == [MARKER], "a reader that has a message wakes the others"
    more, due = run(scripts.CHANNEL_TAKE, TAKEN, HOUR, 1)
    assert not more
    assert 0 < due <= 100
    assert not store.exists("c"), "a reader that has none knows when the next one is due"
    time.sleep(0.11)  # by the clock of the store, which a test cannot set
    assert take(5) == [(b"1", b"later")]
    assert store.lrange("c", 0, -1) == [MARKER]
    assert store.pttl("delayed") > HOUR


def test_messages_put_back_are_first(send: Run, run: Run, take: Run, store: "redis.Redis[bytes]") -> None:
    for payload in "abc":
        send(payload)
    send("later", delay=HOUR)
    marker, *items = store.lpop("c", 3)
    assert marker == MARKER
    run(scripts.CHANNEL_PUT_BACK, ("c", "delayed"), HOUR, *items)
    store.lpush("c", MARKER)
    run(scripts.CHANNEL_PUT_BACK, ("c", "delayed"), HOUR)
    assert [payload for _, payload in take(5)] == [b"a", b"b", b"c"]
    run(scripts.CHANNEL_PUT_BACK, ("c", "delayed"), HOUR, b"1:1:x")
    assert 0 < store.pttl("c") <= HOUR, "the channel expires"


def test_messages_are_ordered_by_their_due_time(send: Run, take: Run) -> None:
    send("second", delay=30, name="x")
    send("first")
    time.sleep(0.05)  # by the clock of the store
    send("third")
    assert take(5) == [(b"1", b"first"), (b"1", b"second"), (b"1", b"third")]


def test_unacknowledged_messages_are_taken_again(
    send: Run, run: Run, take: Run, give_back: Run, store: "redis.Redis[bytes]"
) -> None:
    for payload in ("a", "b:1!c"):
        send(payload)
    assert take(2, consumer="w.1!") == [(b"1", b"a"), (b"1", b"b:1!c")]
    assert take() == []
    ids = store.hkeys("taken")
    assert run(scripts.CHANNEL_TAKEN, "taken") == [value for name in ids for value in (name, b"w.1!")]
    assert give_back(*ids) == 2
    assert give_back(*ids) == 0
    assert take(consumer="w.2!") == [(b"2", b"a")]
    (name,) = store.hkeys("taken")
    assert give_back(name, delay=20) == 1
    assert take(5) == [(b"2", b"b:1!c")]
    time.sleep(0.03)  # by the clock of the store
    assert take(5) == [(b"3", b"a")]


def test_statistics_change_nothing(send: Run, run: Run, store: "redis.Redis[bytes]") -> None:
    keys = SENT
    assert run(scripts.CHANNEL_STATISTICS, keys, HOUR) == [0, 0, 0, 0]
    for delay in (0, 0, HOUR, 0):
        send("x", capacity=3, delay=delay)
    long_ago = round((time.time() - 100) * 1000)
    time.sleep(0.01)  # by the clock of the store
    sent, pending, age, full = run(scripts.CHANNEL_STATISTICS, keys, HOUR)
    assert (sent, pending, full) == (3, 3, 1)
    assert 10 <= age < 5000
    store.zadd("delayed", {"1:1:old": long_ago})
    assert run(scripts.CHANNEL_STATISTICS, keys, 60_000)[1] == 3
    assert 100_000 <= run(scripts.CHANNEL_STATISTICS, keys, HOUR)[2] < 105_000
    assert (store.llen("c"), store.zcard("delayed")) == (2, 2)
    store.lpush("c", b"%d:1:old" % long_ago)
    store.lpush("c", MARKER)
    assert run(scripts.CHANNEL_STATISTICS, keys, 60_000)[1] == 3
    assert run(scripts.CHANNEL_STATISTICS, keys, HOUR)[1] == 5


def test_expired_memberships_are_removed(run: Run, store: "redis.Redis[bytes]") -> None:
    run(scripts.GROUP_ADD, "g", "a!", 60)
    store.zadd("g", {"gone!": (time.time() - 1) * 1000})
    now, members = run(scripts.GROUP_MEMBERS, "g")
    assert members == [b"a!"]
    assert abs(now / 1000 - time.time()) < 5
    run(scripts.GROUP_ADD, "g", "b!", 60)
    assert store.zrange("g", 0, -1) == [b"a!", b"b!"]


def test_only_unclaimed_offers_are_withdrawn(run: Run, store: "redis.Redis[bytes]") -> None:
    store.xgroup_create("s", "workers", "0", mkstream=True)
    claimed, waiting = store.xadd("s", {"b": b"1"}), store.xadd("s", {"b": b"2"})
    store.xreadgroup("workers", "w", {"s": ">"}, count=1)
    assert [run(scripts.WITHDRAW, "s", entry, payload) for entry, payload in ((claimed, "1"), (waiting, "2"))] == [0, 1]
    assert [entry for entry, _ in store.xrange("s")] == [claimed]


def repeat(run: Run, store: "redis.Redis[bytes]", *triples: object, scan: int = 10, since: object = "0-0") -> Any:
    run_id = store.info("server")["run_id"]
    return run(scripts.REPEAT_OFFERS, ("s", "mailbox"), since, scan, run_id, *triples)


def test_offers_are_found_by_id_or_content(run: Run, store: "redis.Redis[bytes]") -> None:
    store.xadd("mailbox", {"b": b""})
    assert repeat(run, store, "", "0", "never", "1-1", "1", "never") == [b"", b""]
    store.xgroup_create("s", "workers", "0", mkstream=True)
    claimed, waiting, moved, done = (store.xadd("s", {"b": b"%d" % number}) for number in range(4))
    store.xreadgroup("workers", "w", {"s": ">"}, count=1)
    store.xdel("s", done)
    offers = ("", "0", "safe", waiting, "1", "always", "1-1", "2", "safe", done, "3", "never", "", "4", "never")
    assert repeat(run, store, *offers) == [claimed, waiting, moved, b"", b""]
    assert repeat(run, store, "", "0", "never", "", "2", "never", since=moved) == [b"", moved]
    assert [entry for entry, _ in store.xrange("s")] == [claimed, waiting, moved]


@pytest.mark.parametrize("when", ["always", "safe", "never"])
@pytest.mark.parametrize("lost", ["nothing", "the mailbox", "the server", "sight"])
def test_a_missing_offer_is_written_again_if_that_is_safe(
    when: str, lost: str, run: Run, store: "redis.Redis[bytes]"
) -> None:
    if lost != "the mailbox":
        store.xadd("mailbox", {"b": b""})
    if lost == "sight":
        for _ in range(10):
            store.xadd("s", {"b": b"another"})
    run_id = "0" * 40 if lost == "the server" else store.info("server")["run_id"]
    (name,) = run(scripts.REPEAT_OFFERS, ("s", "mailbox"), "0-0", 10, run_id, "", "payload", when)
    written = [(entry, fields) for entry, fields in store.xrange("s") if fields[b"b"] == b"payload"]
    if when == "always" or (when == "safe" and lost == "nothing"):
        assert written == [(name, {b"b": b"payload", b"since": b"0-0"})]
        assert repeat(run, store, "", "payload", when) == [name], "once"
    else:
        assert (name, written) == (b"", [])


@pytest.mark.parametrize("grace", [True, False], ids=["grace", "no grace"])
def test_a_clock_step_back_lengthens_no_lease(grace: bool, run: Run, epoch: bytes, store: "redis.Redis[bytes]") -> None:
    ahead = time.time() * 1000 + HOUR
    store.zadd("p", {"a!": ahead + 1000, "b!": ahead + 3000, "beaten": ahead, epoch: math.inf})
    if grace:
        store.zadd("p", {"grace": ahead + 5000})
    times = (5_000, 3_000, 10_000, 60_000, 15_000)  # the lease, silence, grace, listed, expected back
    lapsed, in_grace, now, next_end, live, ended, gone, answered = run(scripts.RENEW_LEASE, "p", "own!", *times)
    longest = 10_000 if grace else 5_000
    assert {name: score - now for name, score in store.zrange("p", 0, -1, withscores=True)} == {
        b"a!": longest,
        b"b!": longest,
        b"own!": 5_000,
        b"beaten": 0,
        epoch: math.inf,
        **({b"grace": 10_000} if grace else {}),
    }
    assert (lapsed, in_grace, next_end, answered) == (1, int(grace), longest, epoch)
    assert (sorted(live), ended, gone) == ([b"a!", b"b!", b"own!"], [], [])


LEASE_TIMES = (5_000, 3_000, 10_000, 60_000, 15_000)
"""The lease, silence, grace, listed, expected back: in ms."""


@pytest.fixture
def wait(store: "redis.Redis[bytes]") -> Callable[[int], None]:
    """Return a function that lets some milliseconds pass for the leases, by moving them into the past.

    What the test itself takes counts for these milliseconds.
    """
    ends, moved = time.monotonic() * 1000, 0.0

    def wait(milliseconds: int) -> None:
        nonlocal ends, moved
        ends += milliseconds
        step = max(0, round(ends - time.monotonic() * 1000 - moved))
        moved += step
        for member, score in store.zrange("p", 0, -1, withscores=True):
            store.zadd("p", {member: score - step})

    return wait


@pytest.fixture
def beat(run: Run, wait: Callable[[int], None]) -> Callable[[str, int], list[bytes]]:
    """Return a function that renews a lease every second for some seconds, and returns the leases that have ended."""

    def beat(mailbox: str, seconds: int) -> list[bytes]:
        ended: list[bytes] = []
        for second in range(seconds + 1):
            if second:
                wait(1_000)
            *_, ended, _, _ = run(scripts.RENEW_LEASE, "p", mailbox, *LEASE_TIMES)
        return ended

    return beat


@pytest.mark.parametrize(("served", "most"), [(3, 4), (4, 3), (12, 1)])
def test_a_dead_process_is_noticed_although_redis_is_away_again_and_again(
    served: int, most: int, run: Run, wait: Callable[[int], None], beat: Callable[[str, int], list[bytes]]
) -> None:
    """The grace is time in which Redis has answered: it does not begin anew with each outage."""
    for mailbox in ("killed!", "own!"):
        run(scripts.RENEW_LEASE, "p", mailbox, *LEASE_TIMES)
    outages = 0
    ended: list[bytes] = []
    while not ended and outages < 10:
        wait(7_000)
        outages += 1
        ended = beat("own!", served)
    assert (ended, outages) == ([b"killed!"], most)


@pytest.mark.parametrize("script", ["RENEW_LEASE", "EXTEND_LEASE"])
def test_a_sign_of_life_restores_the_whole_grace(
    script: str, run: Run, wait: Callable[[int], None], beat: Callable[[str, int], list[bytes]]
) -> None:
    for mailbox in ("cut off!", "own!"):
        run(scripts.RENEW_LEASE, "p", mailbox, *LEASE_TIMES)
    for _ in range(3):
        wait(7_000)
        assert beat("own!", 7) == []
        if script == "RENEW_LEASE":
            run(scripts.RENEW_LEASE, "p", "cut off!", *LEASE_TIMES)
        else:
            assert run(scripts.EXTEND_LEASE, ("p", "connections"), "cut off!", 5_000, "", 0, 0) == 1
    wait(7_000)
    assert beat("own!", 7) == []
    assert beat("own!", 4) == [b"cut off!"]


def test_redis_must_answer_for_long_enough_to_be_reached(
    run: Run, wait: Callable[[int], None], beat: Callable[[str, int], list[bytes]]
) -> None:
    """A process needs up to two seconds to connect again: shorter times between two outages do not count."""
    for mailbox in ("cut off!", "own!"):
        run(scripts.RENEW_LEASE, "p", mailbox, *LEASE_TIMES)
    for _ in range(20):
        wait(4_000)
        assert beat("own!", 1) == []
    wait(4_000)
    assert beat("own!", 7) == []
    assert beat("own!", 4) == [b"cut off!"]


def test_a_process_without_a_lease_for_long_is_listed_as_gone(
    run: Run, epoch: bytes, store: "redis.Redis[bytes]"
) -> None:
    now = time.time() * 1000
    store.zadd(
        "p", {"lives!": now + 3_000, "late!": now - 2_000, "gone!": now - 16_000, "beaten": now, epoch: math.inf}
    )
    *_, live, ended, gone, _ = run(scripts.RENEW_LEASE, "p", "own!", 5_000, 3_000, 10_000, 60_000, 15_000)
    assert (sorted(live), sorted(ended), gone) == ([b"lives!", b"own!"], [b"gone!", b"late!"], [b"gone!"])


def test_an_epoch_lasts_until_the_last_process_leaves(run: Run, store: "redis.Redis[bytes]") -> None:
    times = (5_000, 3_000, 10_000, 0, 0)
    *_, now, _, _, _, _, first = run(scripts.RENEW_LEASE, "p", "a!", *times)
    assert first.startswith(b"epoch:%d:" % now)
    assert store.zrange("p", "+inf", "+inf", byscore=True) == [first]
    run_id = first.rpartition(b":")[2]
    store.zrem("p", first)
    first = b"epoch:1:" + run_id
    store.zadd("p", {first: math.inf})
    store.zadd("p", {"beaten": now - HOUR, "grace": now - HOUR, "a!": now - HOUR})
    assert run(scripts.RENEW_LEASE, "p", "b!", *times)[-1] == first
    assert run(scripts.RENEW_LEASE, "p", "a!", *times)[-1] == first
    assert store.zrange("p", "+inf", "+inf", byscore=True) == [first]
    assert [run(scripts.END_LEASE, "p", mailbox) for mailbox in ("a!", "b!")] == [0, 1]
    assert not store.exists("p")


def test_another_server_begins_another_epoch_and_a_grace(run: Run, store: "redis.Redis[bytes]") -> None:
    times = (5_000, 3_000, 10_000, 60_000, 15_000)
    first = run(scripts.RENEW_LEASE, "p", "a!", *times)[-1]
    run_id = first.rpartition(b":")[2]
    store.zrem("p", first)
    store.zadd("p", {b"epoch:1:abc": math.inf, b"grace": 0})
    _, in_grace, now, *_, second = run(scripts.RENEW_LEASE, "p", "a!", *times)
    assert (in_grace, second) == (1, b"epoch:%d:%s:again" % (now, run_id))
    assert store.zrange("p", "+inf", "+inf", byscore=True) == [second]
    assert run(scripts.RENEW_LEASE, "p", "a!", *times)[-1] == second


def test_a_requeued_claim_is_read_by_another_consumer(run: Run, store: "redis.Redis[bytes]") -> None:
    store.xgroup_create("s", "workers", "0", mkstream=True)
    entry = store.xadd("s", {"b": b"1"})
    store.xreadgroup("workers", "first", {"s": ">"})
    run(scripts.REQUEUE, "s", entry)
    [[_, [(again, fields)]]] = store.xreadgroup("workers", "second", {"s": ">"})
    assert fields == {b"b": b"1", b"since": entry}
    run(scripts.REQUEUE, "s", again)
    [[_, [(last, fields)]]] = store.xreadgroup("workers", "second", {"s": ">"})
    assert fields == {b"b": b"1", b"since": entry}
    assert run(scripts.WITHDRAW, "s", entry, "1") == 0  # it is claimed
    run(scripts.REQUEUE, "s", last)
    assert run(scripts.WITHDRAW, "s", entry, "1") == 1
    assert store.xlen("s") == 0


def test_an_offer_that_was_written_again_and_requeued_is_withdrawn(run: Run, store: "redis.Redis[bytes]") -> None:
    store.xadd("mailbox", {"b": b""})
    store.xgroup_create("s", "workers", "0", mkstream=True)
    another, entry = repeat(run, store, "", "1", "always", "", "2", "always")
    [[_, claims]] = store.xreadgroup("workers", "first", {"s": ">"})
    for claimed, _ in claims:
        run(scripts.REQUEUE, "s", claimed)
    assert run(scripts.WITHDRAW, "s", entry, "2") == 1
    assert [fields[b"b"] for _, fields in store.xrange("s")] == [b"1"]
    assert run(scripts.WITHDRAW, "s", another, "1") == 1


def test_an_entry_released_too_often_is_deleted(run: Run, store: "redis.Redis[bytes]") -> None:
    store.xgroup_create("s", "workers", "0", mkstream=True)
    first = entry = store.xadd("s", {"b": b"1"})
    for number in range(3):
        [[_, [(entry, fields)]]] = store.xreadgroup("workers", f"w{number}", {"s": ">"})
        assert fields == {b"b": b"1"} | ({b"since": first, b"released": b"%d" % number} if number else {})
        assert run(scripts.RELEASE, "s", entry, 2) == (number == 2)
        assert run(scripts.RELEASE, "s", entry, 2) == 0  # it is not claimed any more
    assert store.xlen("s") == 0


def test_claims_of_a_released_consumer_are_requeued(run: Run, store: "redis.Redis[bytes]") -> None:
    store.xgroup_create("s", "workers", "0", mkstream=True)
    for number in range(3):
        store.xadd("s", {"b": b"%d" % number})
    store.xreadgroup("workers", "first", {"s": ">"})
    run(scripts.RELEASE_CONSUMER, "s", "first")
    [[_, entries]] = store.xreadgroup("workers", "second", {"s": ">"})
    assert [fields[b"b"] for _, fields in entries] == [b"0", b"1", b"2"]
    assert [consumer["name"] for consumer in store.xinfo_consumers("s", "workers")] == [b"second"]
