"""Processes that die without a supervisor are noticed by their connections, which the kernel closes.

A process that only loses its connections is alive: it is back soon, with others.
"""

import asyncio
import logging
import statistics
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from urllib.parse import urlsplit

import pytest
import redis

from support.bus import until
from support.deadline import in_time
from support.lease_times import LEASE
from support.peers import NOTICED, SLACK, Peer, peer, place
from support.redis import RedisServer
from support.tcp_proxy import TcpProxy

pytestmark = pytest.mark.anyio

PROMISED = 1.5
"""Seconds within which half of all deaths are noticed."""


def connections(admin: "redis.Redis[bytes]", prefix: str, mailbox: str) -> list[str]:
    """Return the ids of the connections that a process has named."""
    names = admin.hget(f"{prefix}:connections", mailbox)
    return names.decode().partition(":")[2].split(",") if names else []


async def named(admin: "redis.Redis[bytes]", prefix: str, each: Peer) -> None:
    """Wait until a process has named its connection for writing and that of its thread."""
    await until(lambda: len(connections(admin, prefix, each.mailbox)) == 2)


async def test_a_death_is_noticed_long_before_the_lease_ends(redis_url: str, admin: "redis.Redis[bytes]") -> None:
    async with place(redis_url, "a") as one, place(redis_url, "a") as two, AsyncExitStack() as stack:
        victims = await asyncio.gather(*(stack.enter_async_context(peer(redis_url, "a")) for _ in range(3)))
        await asyncio.gather(*(named(admin, "a", victim) for victim in victims))
        waits = []
        for victim in victims:
            killed = await victim.kill()
            await until(lambda who=victim.mailbox: who in one.handler.dead and who in two.handler.dead)
            waits.append(time.monotonic() - killed)
        in_time(statistics.median(waits), PROMISED)
        assert sorted(one.handler.dead) == sorted(two.handler.dead) == sorted(victim.mailbox for victim in victims)
        assert one.layer.counts["death"] == two.layer.counts["death"] == len(victims)
        await until(lambda: not any(connections(admin, "a", victim.mailbox) for victim in victims))


async def test_a_process_whose_connections_are_killed_is_alive(redis_url: str, admin: "redis.Redis[bytes]") -> None:
    async with place(redis_url, "a") as one, peer(redis_url, "a") as alive, peer(redis_url, "a") as other:
        for each in (alive, other):
            await named(admin, "a", each)
        ends = time.monotonic() + 2.5
        rounds = 0
        while time.monotonic() < ends:
            for each in connections(admin, "a", alive.mailbox):
                admin.execute_command("CLIENT", "KILL", "ID", each)  # type: ignore[no-untyped-call]
            if rounds % 4 == 3:
                admin.execute_command("CLIENT", "KILL", "TYPE", "normal")  # type: ignore[no-untyped-call]
            rounds += 1
            await asyncio.sleep(0.25)  # between two kills
        await until(lambda: len(connections(admin, "a", alive.mailbox)) == 2)
        await alive.do("post", one.mailbox, 1)
        await until(lambda: one.handler.frames)
        assert one.handler.dead == alive.all("dead") == other.all("dead") == []
        assert one.handler.interruptions == 0
        assert alive.all("interrupted") == other.all("interrupted") == []


async def test_what_names_no_connections_hides_no_death(redis_url: str, admin: "redis.Redis[bytes]") -> None:
    async with place(redis_url, "a") as one, place(redis_url, "a"), peer(redis_url, "a") as victim:
        await named(admin, "a", victim)
        run_id = admin.info("server")["run_id"]
        odd = {b"comma!": ",", b"long!": 5000 * "1", b"\xff!": "1", b"commas!": "1,,2"}
        seconds, _ = admin.time()
        admin.zadd("a:processes", dict.fromkeys(odd, (seconds + 4) * 1000))
        for name, ids in odd.items():
            admin.hset("a:connections", name, f"{run_id}:{ids}")
        killed = await victim.kill()
        await until(lambda: victim.mailbox in one.handler.dead)
        in_time(time.monotonic() - killed, 2 * PROMISED)
        assert one.layer.counts["death"] >= 1


@pytest.mark.usefixtures("short_leases")
async def test_a_process_behind_a_proxy_lives_as_long_as_its_lease(redis_url: str, admin: "redis.Redis[bytes]") -> None:
    parts = urlsplit(redis_url)
    with TcpProxy((parts.hostname or "", parts.port or 6379)) as proxy:
        async with place(redis_url, "a") as one, peer(f"{proxy.url}{parts.path}", "a") as alive:
            assert admin.hexists("a:connections", one.mailbox)
            assert not admin.hexists("a:connections", alive.mailbox)
            for _ in range(4):
                await asyncio.to_thread(proxy.reset)
                await asyncio.sleep(LEASE / 4)  # between two faults
            await alive.do("post", one.mailbox, 1)
            await until(lambda: one.handler.frames)
            assert one.handler.dead == []
            await alive.kill()
            await until(lambda: one.handler.dead == [alive.mailbox], NOTICED + SLACK)


@pytest.mark.usefixtures("short_leases")
async def test_without_permission_the_lease_decides(
    start_redis: Callable[..., RedisServer], caplog: pytest.LogCaptureFixture
) -> None:
    store = start_redis()
    with redis.Redis.from_url(store.url) as admin:
        rules = "on", ">secret", "~*", "+@all", "-client|list"
        admin.execute_command("ACL", "SETUSER", "app", *rules)  # type: ignore[no-untyped-call]
        url = store.url.replace("//", "//app:secret@")
        caplog.set_level(logging.INFO, "asgibus")
        async with place(url, "a") as one, peer(url, "a") as victim:
            await named(admin, "a", victim)
            await victim.kill()
            end = float(admin.zscore("a:processes", victim.mailbox))
            await until(lambda: one.handler.dead == [victim.mailbox], NOTICED + SLACK)
            seconds, microseconds = admin.time()
            assert seconds * 1000 + microseconds / 1000 >= end
    (line,) = [record.getMessage() for record in caplog.records if "and no sooner" in record.getMessage()]
    assert "NOPERM" in line
