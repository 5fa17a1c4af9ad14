"""Processes that are killed, pause or leave while Redis works: the others notice in time, and no data remains.

The tests wait for leases most of the time, so slow scenarios run concurrently, each with its own prefix.
"""

import asyncio
import signal
import time
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis

from asgibus.layers import RedisChannelLayer
from asgibus.layers.codec import pack
from asgibus.layers.frames import DEAD, FIRST_PROTOCOL_KIND, GROUP_MESSAGE
from asgibus.layers.redis import heartbeat
from asgibus.layers.redis.pipeline import Pipeline
from support.bus import until
from support.deadline import in_time
from support.lease_times import BEAT, GRACE, HANG, LEASE, RETURN
from support.peers import NOTICED, SLACK, peer, place
from support.tcp_proxy import TcpProxy

pytestmark = pytest.mark.anyio
short_leases = pytest.mark.usefixtures("short_leases")

KIND = FIRST_PROTOCOL_KIND
PAUSE = LEASE + 1
AT_ONCE = 1.0
"""Seconds; less than a lease, whose end would report a death as well."""


def keys(admin: "redis.Redis[bytes]", prefix: str) -> set[str]:
    return {key.decode() for key in admin.keys(f"{prefix}:*")}


def lease_end(admin: "redis.Redis[bytes]", prefix: str, mailbox: str) -> float:
    """Return when a lease ends, in seconds by the clock of Redis."""
    return float(admin.zscore(f"{prefix}:processes", mailbox)) / 1000


def redis_time(admin: "redis.Redis[bytes]") -> float:
    seconds, microseconds = admin.time()
    return seconds + microseconds / 1e6


def consumers(admin: "redis.Redis[bytes]", key: str) -> set[str]:
    return {consumer["name"].decode() for consumer in admin.xinfo_consumers(key, "workers")}


# Deaths.


@short_leases
async def test_killed_and_stopped_processes(redis_url: str, admin: "redis.Redis[bytes]") -> None:
    async with asyncio.TaskGroup() as scenarios:
        for scenario in (
            a_killed_process_is_declared_dead_and_leaves_nothing,
            a_death_is_reported_after_all_posted_frames,
            no_process_is_declared_dead_when_all_are_paused,
            orphans_are_claimed_by_others,
            a_later_claimant_finds_orphans,
            an_undelivered_frame_declares_no_process_dead,
        ):
            scenarios.create_task(scenario(redis_url, admin), name=scenario.__name__)


@short_leases
async def test_paused_processes_return(redis_url: str, admin: "redis.Redis[bytes]") -> None:
    async with asyncio.TaskGroup() as scenarios:
        for scenario in (
            a_paused_process_is_declared_dead_and_returns,
            consumers_of_a_paused_process_receive_afterwards,
            a_process_that_returns_late_misses_broadcasts,
            a_process_that_holds_the_interpreter_lock_is_declared_dead,
        ):
            scenarios.create_task(scenario(redis_url, admin), name=scenario.__name__)


async def a_killed_process_is_declared_dead_and_leaves_nothing(url: str, admin: "redis.Redis[bytes]") -> None:
    prefix = "killed"
    async with place(url, prefix) as one, place(url, prefix) as two:
        await one.bus.join_group("both")
        await one.layer.new_channel()  # a second mailbox of the same process: no death is counted twice
        await one.bus.drain()
        before = keys(admin, prefix)
        async with peer(url, prefix) as victim:
            await victim.do("join", "both")
            await victim.do("join", "mine")
            of_victim = {f"{prefix}:mailbox:{victim.mailbox}", f"{prefix}:joined:{victim.mailbox}"}
            await victim.do("post", one.mailbox, 3)
            assert keys(admin, prefix) == before | of_victim | {f"{prefix}:group:mine"}
            await victim.kill()
            await until(lambda: one.handler.dead and two.handler.dead, NOTICED + SLACK)
            end = lease_end(admin, prefix, victim.mailbox)
            assert redis_time(admin) >= end
            await until(lambda: keys(admin, prefix) == before, RETURN + BEAT + SLACK)
            assert redis_time(admin) >= end + RETURN, "until then the process may return"
            assert admin.zrange(f"{prefix}:group:both", 0, -1) == [one.mailbox.encode()]
            await asyncio.sleep(2 * BEAT)  # two beats, in which no death may be reported twice
            assert one.handler.dead == two.handler.dead == [victim.mailbox]
            assert one.handler.events == [(KIND, 0), (KIND, 1), (KIND, 2), (DEAD, victim.mailbox, False)]
            assert one.layer.counts["death"] == two.layer.counts["death"] == 1
            assert one.handler.interruptions == two.handler.interruptions == 0
    assert keys(admin, prefix) == {f"{prefix}:processes"}  # which lists the killed process for later ones


async def a_death_is_reported_after_all_posted_frames(url: str, admin: "redis.Redis[bytes]") -> None:
    """Delay the reading of a mailbox: a death is reported after all frames of the killed process."""
    prefix = "behind"
    parts = urlsplit(url)
    with TcpProxy((parts.hostname or "", parts.port or 6379)) as proxy:
        async with place(f"{proxy.url}{parts.path}", prefix) as one, peer(url, prefix) as victim:
            await asyncio.to_thread(proxy.blackhole, "!mailbox")
            await victim.do("post", one.mailbox, 500)
            await victim.kill()
            await until(lambda: one.layer.counts["death"] == 1, NOTICED + SLACK)
            assert one.handler.events == []
            await asyncio.to_thread(proxy.heal)
            await until(lambda: one.handler.dead)
            # Frames that are read after the end of the lease may cause a second report, as the last event.
            assert one.handler.events[:500] == [(KIND, number) for number in range(500)]
            assert set(one.handler.events[500:]) == {(DEAD, victim.mailbox, False)}


async def a_paused_process_is_declared_dead_and_returns(url: str, admin: "redis.Redis[bytes]") -> None:
    prefix = "paused"
    async with place(url, prefix) as one, place(url, prefix) as two, peer(url, prefix) as victim:
        for each in (one, two):
            await each.bus.join_group("group")
        await victim.do("join", "group")
        paused = victim.signal(signal.SIGSTOP)
        end = lease_end(admin, prefix, victim.mailbox)
        await until(lambda: one.handler.dead and two.handler.dead, NOTICED + SLACK)
        assert redis_time(admin) >= end
        await one.layer.group_send("group", {"n": 0})
        await asyncio.sleep(paused + PAUSE - time.monotonic())  # the pause has to last
        resumed = victim.signal(signal.SIGCONT)
        await until(lambda: victim.all("interrupted"))
        in_time(victim.when("interrupted") - resumed, 1 + SLACK)
        one.bus.post(victim.mailbox, (KIND, "to"))
        await one.layer.group_send("group", {"n": 1})
        await until(lambda: victim.all("frame") == [["group", {"n": 0}], ["to"], ["group", {"n": 1}]])
        await victim.do("post", one.mailbox, 2)
        await victim.do("group_send", "group", {"n": 2})
        expected = [(GROUP_MESSAGE, "group", {"n": n}) for n in (0, 1)]
        expected += [(KIND, 0), (KIND, 1), (GROUP_MESSAGE, "group", {"n": 2})]
        await until(lambda: one.handler.frames == expected)
        assert one.handler.lost == []
        assert victim.all("interrupted") == [None]
        assert await victim.do("counts", "group unheard") == 0
        # The others consider the process alive again, and notice when it is killed.
        await victim.kill()
        await until(lambda: len(one.handler.dead) == len(two.handler.dead) == 2, NOTICED + SLACK)
        assert set(one.handler.dead + two.handler.dead) == {victim.mailbox}
        assert victim.all("dead") == []


async def consumers_of_a_paused_process_receive_afterwards(url: str, admin: "redis.Redis[bytes]") -> None:
    """Pause a process with a consumer: the consumer gets all messages, since its groups are restored."""
    prefix = "blocked"
    async with place(url, prefix) as one, peer(url, prefix) as victim:
        channel = await victim.do("local", "group")
        victim.signal(signal.SIGSTOP)
        await until(lambda: victim.mailbox in one.handler.dead, NOTICED + SLACK)
        await one.layer.group_send("group", {"n": 1})
        await one.layer.send(channel, {"n": 2})
        victim.signal(signal.SIGCONT)
        await until(lambda: victim.all("message") == [{"n": 1}, {"n": 2}])
        await one.layer.group_send("group", {"n": 3})
        await until(lambda: victim.all("message")[2:] == [{"n": 3}])


async def a_process_that_holds_the_interpreter_lock_is_declared_dead(url: str, admin: "redis.Redis[bytes]") -> None:
    prefix = "lock"
    async with place(url, prefix) as one, peer(url, prefix) as victim:
        await victim.do("post", one.mailbox, 1)
        await until(lambda: one.handler.frames)
        holding = asyncio.create_task(victim.do("hold", LEASE + 1))
        await until(lambda: one.handler.dead == [victim.mailbox], NOTICED + SLACK)
        await holding
        await until(lambda: victim.all("interrupted"))


async def a_process_that_returns_late_misses_broadcasts(url: str, admin: "redis.Redis[bytes]") -> None:
    prefix = "late"
    async with place(url, prefix) as one, peer(url, prefix) as victim:
        await victim.do("join", "group")
        await victim.do("join", "other")
        victim.signal(signal.SIGSTOP)
        await until(lambda: one.handler.dead, NOTICED + SLACK)
        await one.layer.group_send("group", {"n": 1})
        mailbox = f"{prefix}:mailbox:{victim.mailbox}"
        assert admin.exists(mailbox)
        await until(lambda: not admin.exists(mailbox, f"{prefix}:group:group"), RETURN + BEAT + SLACK)
        await one.layer.group_send("group", {"n": 2})
        victim.signal(signal.SIGCONT)
        await until(lambda: victim.all("interrupted"))
        assert await victim.do("counts", "group unheard") == 2
        await one.layer.group_send("group", {"n": 3})
        await until(lambda: ["group", {"n": 3}] in victim.all("frame"))
        assert ["group", {"n": 2}] not in victim.all("frame")  # the blocked read may have got the first broadcast


async def no_process_is_declared_dead_when_all_are_paused(url: str, admin: "redis.Redis[bytes]") -> None:
    prefix = "all"
    async with peer(url, prefix) as one, peer(url, prefix) as two, peer(url, prefix) as three:
        peers = (one, two, three)
        for each in peers:
            await each.do("join", "group")
        for each in peers:
            each.signal(signal.SIGSTOP)
        await asyncio.sleep(PAUSE)
        one.signal(signal.SIGCONT)
        await one.do("post", three.mailbox, 1)
        await asyncio.sleep(LEASE / 2)  # the last one continues later, and keeps its lease
        two.signal(signal.SIGCONT)
        three.signal(signal.SIGCONT)
        await until(lambda: three.all("frame") == [[0]])
        await three.do("post", one.mailbox, 1)
        await two.do("group_send", "group", {})
        await until(lambda: all(["group", {}] in each.all("frame") for each in peers))
        await asyncio.sleep(NOTICED)
        assert [each.all("dead") for each in peers] == [[], [], []]
        assert [each.all("undelivered") for each in peers] == [[], [], []]
        assert [await each.do("counts", "group unheard") for each in peers] == [0, 0, 0]


# Claims of dead processes.


async def orphans_are_claimed_by_others(url: str, admin: "redis.Redis[bytes]") -> None:
    prefix, key = "orphans", "orphans:shared:x"
    async with place(url, prefix) as interface, peer(url, prefix) as claimant, place(url, prefix) as other:
        interface.bus.offer("x", ("of the other one",))
        await other.bus.claim(["x"], 1)
        async with peer(url, prefix) as victim:
            await victim.do("claim", "x")
            await until(lambda: victim.mailbox in consumers(admin, key))
            entries = [[number, "scope"] for number in range(250)]
            for entry in entries:
                interface.bus.offer("x", entry)
            await until(lambda: len(victim.all("claimed")) == len(entries))
            await claimant.do("claim", "x")
            claiming = asyncio.create_task(other.bus.claim(["x"], 1))
            await victim.kill()

            def orphans() -> list[Any]:
                return sorted(claimant.all("orphaned") + [list(claim.entry) for claim in other.handler.orphans])

            await until(lambda: len(orphans()) >= len(entries), NOTICED + SLACK)
            assert redis_time(admin) >= lease_end(admin, prefix, victim.mailbox)
            await asyncio.sleep(2 * BEAT)  # no claim may be handed on twice or be taken from a live process
            assert orphans() == entries
            assert admin.xpending(key, "workers")["pending"] == len(entries) + 1
            assert victim.mailbox not in consumers(admin, key)
            assert not claiming.done()
            for claim in other.handler.orphans:
                other.bus.done(claim)
            await other.bus.drain()
            await claimant.do("done")
            assert admin.xpending(key, "workers")["pending"] == 1
            assert admin.xlen(key) == 1
            other.bus.stop_claiming()
            assert await asyncio.wait_for(claiming, 30) == []
    assert [name for name in consumers(admin, key) if not name.startswith(other.mailbox)] == []


async def a_later_claimant_finds_orphans(url: str, admin: "redis.Redis[bytes]") -> None:
    """Claim later than a death: the orphans arrive, those of a process without a lease only after the grace time."""
    prefix, key = "later", "later:shared:x"
    async with place(url, prefix) as interface:
        async with peer(url, prefix) as victim:
            await victim.do("claim", "x")
            await until(lambda: victim.mailbox.encode() in [each["name"] for each in groups_of(admin, key)])
            for number in range(3):
                interface.bus.offer("x", [number])
            await until(lambda: len(victim.all("claimed")) == 3)
            await victim.kill()
        admin.xadd(key, {"b": pack(["forgotten"])})
        admin.xreadgroup("workers", "w.forgotten!", {key: ">"}, count=1)
        await until(lambda: interface.handler.dead == [victim.mailbox], NOTICED + SLACK)
        async with place(url, prefix) as later:
            claiming = asyncio.create_task(later.bus.claim(["x"], 1))
            orphans = later.handler.orphans
            await until(lambda: len(orphans) >= 3, 1 + SLACK)
            early = {claim.entry for claim in orphans}
            if redis_time(admin) < lease_end(admin, prefix, "grace"):  # not on a machine that was too slow
                assert early == {(0,), (1,), (2,)}
            await until(lambda: len(orphans) == 4, GRACE + BEAT + SLACK)
            assert redis_time(admin) >= lease_end(admin, prefix, "grace")
            assert {claim.entry for claim in orphans} == {(0,), (1,), (2,), ("forgotten",)}
            for claim in orphans:
                later.bus.done(claim)
            await later.bus.drain()
            assert admin.xpending(key, "workers")["pending"] == admin.xlen(key) == 0
            later.bus.stop_claiming()
            assert await asyncio.wait_for(claiming, 30) == []
    assert consumers(admin, key) == set()
    assert keys(admin, prefix) == {key, f"{prefix}:processes"}


def groups_of(admin: "redis.Redis[bytes]", key: str) -> list[Any]:
    """Return the consumers of a stream, none if the stream does not exist yet."""
    return admin.xinfo_consumers(key, "workers") if admin.exists(key) and admin.xinfo_groups(key) else []


# Undelivered frames.


async def an_undelivered_frame_declares_no_process_dead(url: str, admin: "redis.Redis[bytes]") -> None:
    """Delete a mailbox: its process is declared dead only when its lease has ended."""
    prefix = "undelivered"
    began = time.monotonic()
    async with place(url, prefix) as one, peer(url, prefix) as victim:
        victim.signal(signal.SIGSTOP)  # it keeps its connections
        end = lease_end(admin, prefix, victim.mailbox)
        admin.delete(f"{prefix}:mailbox:{victim.mailbox}")
        one.bus.post(victim.mailbox, (KIND, 1))
        await until(lambda: one.handler.lost == [victim.mailbox], 1)
        assert one.handler.dead == []
        one.bus.post("w.never!", (KIND, 1))
        await until(lambda: one.handler.lost == [victim.mailbox, "w.never!"], 1)
        await until(lambda: victim.mailbox in one.handler.dead, NOTICED + SLACK)
        assert redis_time(admin) >= end
        if time.monotonic() - began < GRACE - 0.5:  # else the start of the victim seconds long
            assert one.handler.dead == [victim.mailbox]
        await until(lambda: len(one.handler.dead) == 2, GRACE + BEAT + SLACK)
        assert set(one.handler.dead) == {victim.mailbox, "w.never!"}
        assert time.monotonic() - began > GRACE - 0.5
        # The death is reported again at a further frame for the same mailbox.
        one.bus.post("w.never!", (KIND, 2))
        await until(lambda: one.handler.dead[2:] == ["w.never!"], 1 + SLACK)
        assert one.layer.counts["undelivered"] == 3
        assert one.layer.counts["death"] == 1, "there never was a process w.never!"
        await victim.kill()


# Processes that are declared dead.


async def test_a_declared_death_is_reported_at_once(redis_url: str) -> None:
    async with place(redis_url, "a") as one, place(redis_url, "a") as two, place(redis_url, "a") as sender:
        async with peer(redis_url, "a") as victim:
            await victim.do("post", one.mailbox, 100)
            await victim.kill()
            declared = time.monotonic()
            await sender.layer.declare_dead(victim.mailbox)
            await until(lambda: all(each.handler.dead for each in (one, two, sender)))
            in_time(time.monotonic() - declared, AT_ONCE)
            assert one.handler.events == [*((KIND, number) for number in range(100)), (DEAD, victim.mailbox, True)]
            await sender.layer.declare_dead(victim.mailbox)
            await sender.layer.declare_dead("nobody.0!")
            await until(lambda: "nobody.0!" in one.handler.dead)
            assert [each.layer.counts["death"] for each in (one, two, sender)] == [2, 2, 2]
        await asyncio.sleep(1.2)  # a beat, in which nothing may be reported again
        assert one.handler.dead == two.handler.dead == [victim.mailbox, victim.mailbox, "nobody.0!"]
        assert one.handler.interruptions == two.handler.interruptions == sender.handler.interruptions == 0


@short_leases
async def test_a_death_is_reported_once_when_its_declaration_is_slow(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A heartbeat of a third process between two commands of the declaration does not report the death again."""
    call = Pipeline.call

    async def call_late(pipeline: Pipeline, *args: Any, **options: Any) -> Any:
        if pipeline is sender_pipeline:
            await asyncio.sleep(2 * BEAT)
        return await call(pipeline, *args, **options)

    async with place(redis_url, "a") as one, peer(redis_url, "a") as victim:
        sender = RedisChannelLayer(redis_url, prefix="a")
        await sender.send("channel", {})
        (shard,) = sender._shards
        sender_pipeline = (await shard.client()).pipeline
        victim.signal(signal.SIGSTOP)  # it keeps its connections, so that no other process declares it dead
        with monkeypatch.context() as patch:
            patch.setattr(Pipeline, "call", call_late)
            await sender.declare_dead(victim.mailbox)
        await asyncio.sleep(2 * BEAT)  # a heartbeat
        assert one.handler.events == [(DEAD, victim.mailbox, True)]
        await victim.kill()
        await sender.close()


async def test_a_live_process_that_is_declared_dead_continues(redis_url: str, admin: "redis.Redis[bytes]") -> None:
    async with place(redis_url, "a") as one, place(redis_url, "a") as live, place(redis_url, "a") as sender:
        await live.bus.join_group("group")
        declared = time.monotonic()
        await sender.layer.declare_dead(live.mailbox)
        await until(lambda: live.handler.interruptions and one.handler.dead)
        in_time(time.monotonic() - declared, AT_ONCE)
        assert live.handler.dead == []
        assert one.handler.dead == sender.handler.dead == [live.mailbox]
        # The keys that were removed exist again.
        await until(lambda: admin.exists(f"a:mailbox:{live.mailbox}"))
        await until(lambda: admin.zrange("a:group:group", 0, -1) == [live.mailbox.encode()])
        one.bus.post(live.mailbox, (KIND, 1))
        live.bus.post(one.mailbox, (KIND, 2))
        await until(lambda: live.handler.frames == [(KIND, 1)] and one.handler.frames == [(KIND, 2)])
        await one.layer.group_send("group", {})
        await until(lambda: len(live.handler.frames) == 2)
        # A second declaration is reported like the first.
        await sender.layer.declare_dead(live.mailbox)
        await until(lambda: one.handler.dead == [live.mailbox] * 2)


async def test_orphans_of_a_declared_death_are_claimed_at_once(redis_url: str, admin: "redis.Redis[bytes]") -> None:
    async with place(redis_url, "a") as one, place(redis_url, "a") as claimant, peer(redis_url, "a") as victim:
        await victim.do("claim", "x")
        one.bus.offer("x", (1,))
        await until(lambda: victim.all("claimed"))
        claiming = asyncio.create_task(claimant.bus.claim(["x"], 1))
        await until(lambda: claimant.mailbox in consumers(admin, "a:shared:x"))
        await victim.kill()
        declared = time.monotonic()
        await one.layer.declare_dead(victim.mailbox)
        await until(lambda: claimant.handler.orphans)
        in_time(time.monotonic() - declared, AT_ONCE)
        assert [claim.entry for claim in claimant.handler.orphans] == [(1,)]
        claimant.bus.done(claimant.handler.orphans[0])
        claimant.bus.stop_claiming()
        await claiming


# Processes that find their own data missing.


@pytest.mark.parametrize("loss", ["mailbox", "lease"])
async def test_a_process_restores_its_lost_data(loss: str, redis_url: str, admin: "redis.Redis[bytes]") -> None:
    async with place(redis_url, "a") as one:
        if loss == "mailbox":
            admin.delete(f"a:mailbox:{one.mailbox}")
        else:
            admin.zadd("a:processes", {one.mailbox: 1})
        await until(lambda: one.handler.interruptions, 1 + SLACK)
        assert admin.zscore("a:processes", one.mailbox) > admin.time()[0] * 1000
        async with place(redis_url, "a") as two:
            two.bus.post(one.mailbox, (KIND, 1))
            await until(lambda: one.handler.frames == [(KIND, 1)])
            await asyncio.sleep(1.2)  # a beat more, in which nothing is new
            assert one.handler.interruptions == 1
            assert two.handler.lost == []


# Leaving and staying.


async def test_a_process_that_leaves_deletes_its_keys(redis_url: str, admin: "redis.Redis[bytes]") -> None:
    async with peer(redis_url, "a") as one:
        async with peer(redis_url, "a") as two:
            for each in (one, two):
                await each.do("join", "group")
            await two.do("join", "mine")
            await two.do("post", one.mailbox, 1)
            assert len(keys(admin, "a")) == 3 + 2 + 2 + 2
        assert keys(admin, "a") == {
            "a:processes",
            "a:connections",
            "a:releases",
            "a:group:group",
            f"a:mailbox:{one.mailbox}",
            f"a:joined:{one.mailbox}",
        }
    assert keys(admin, "a") == set()


async def test_leaving_counts_as_no_death(redis_url: str, admin: "redis.Redis[bytes]") -> None:
    async with place(redis_url, "a") as one:
        async with peer(redis_url, "a") as two:
            await two.do("post", one.mailbox, 1)
            await until(lambda: one.handler.events)
            admin.zrem("a:processes", "grace")  # the time in which no process without a lease is declared dead
        await until(lambda: one.handler.dead == [two.mailbox], 6)
        assert one.layer.counts["death"] == 0


@short_leases
async def test_a_busy_event_loop_keeps_its_lease_and_a_hung_one_loses_it(redis_url: str) -> None:
    async with place(redis_url, "asgibus") as one, peer(redis_url, "asgibus") as two:
        await two.do("join", "group")
        await two.do("post", one.mailbox, 1)
        await until(lambda: one.handler.frames)
        await asyncio.sleep(3 * BEAT)
        await two.do("block", LEASE + 0.5)
        await asyncio.sleep(1.0)  # a death would be noticed by then
        assert one.handler.dead == two.all("dead") == []
        assert two.all("interrupted") == []
        began = time.monotonic()
        blocking = asyncio.create_task(two.do("block", HANG + LEASE + 1))
        await until(lambda: one.handler.dead == [two.mailbox])
        assert time.monotonic() - began > HANG - 1
        in_time(time.monotonic() - began, HANG + NOTICED + SLACK)
        await blocking
        await until(lambda: two.all("interrupted"))
        await one.layer.group_send("group", {"n": "after"})
        await until(lambda: ["group", {"n": "after"}] in two.all("frame"))


@short_leases
async def test_the_mailbox_of_a_hung_process_is_bounded(
    redis_url: str, admin: "redis.Redis[bytes]", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "RETURN_BYTES", 1_000_000)
    async with place(redis_url, "asgibus") as one, peer(redis_url, "asgibus") as two:
        await two.do("join", "group")
        two.signal(signal.SIGSTOP)
        stopped = time.monotonic()
        for _ in range(200):
            await one.layer.group_send("group", {"n": "x" * 10_000})
        key = f"asgibus:mailbox:{two.mailbox}"
        size = admin.memory_usage(key)
        assert size is None or size > heartbeat.RETURN_BYTES  # None on a slow machine: the lease has ended already
        await until(lambda: not admin.exists(key))
        in_time(time.monotonic() - stopped, NOTICED + SLACK)
        await one.layer.group_send("group", {"n": "nobody"})
        assert one.layer.counts["mailbox dropped"] == 1
        two.signal(signal.SIGCONT)
        await until(lambda: two.all("interrupted"))
        await one.layer.group_send("group", {"n": "after"})
        await until(lambda: ["group", {"n": "after"}] in two.all("frame"))
