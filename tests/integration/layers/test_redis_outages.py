"""Redis that pauses, loses its data, has no room or fails over: all processes recover and notice interruptions.

Each scenario has a Redis of its own. The waits are real, so long scenarios run at the same time.
"""

import asyncio
import logging
import shutil
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis

from asgibus.layers import LayerUnavailable, RedisChannelLayer
from asgibus.layers.codec import pack
from asgibus.layers.frames import FIRST_PROTOCOL_KIND, GROUP_MESSAGE
from asgibus.layers.redis import client, pipeline
from asgibus.layers.redis.pipeline import DRAIN_SECONDS, PAYLOAD_VERSION
from support.bus import until
from support.deadline import in_time
from support.lease_times import BEAT, GRACE, LEASE
from support.peers import NOTICED, SLACK, Peer, Place, peer, place
from support.redis import RedisServer
from support.sentinel import SentinelSet
from support.tcp_proxy import TcpProxy

pytestmark = pytest.mark.anyio

StartRedis = Callable[..., RedisServer]
KIND = FIRST_PROTOCOL_KIND
OUTAGE = LEASE + 1.5
"""Longer than a lease, and than Redis may be silent."""
WAIT = 1.5
"""Seconds that calls wait for Redis; 5 by default."""
AT_ONCE = 1.0 + SLACK
"""Seconds within which an interruption is known: a beat, and the pauses between the tries to connect."""


@asynccontextmanager
async def member(url: str, **options: Any) -> AsyncIterator[Place]:
    """Join the bus and a group."""
    async with place(url, "asgibus", **options) as one:
        await one.bus.join_group("group")
        yield one


@asynccontextmanager
async def three_processes(url: str) -> AsyncIterator[tuple[Place, Place, Peer]]:
    """Yield three processes on a bus, one of them to be killed."""
    async with member(url) as one, member(url) as two, peer(url, "asgibus") as victim:
        await victim.do("join", "group")
        for each in (one, two):  # the death of an unknown process is not reported
            await victim.do("post", each.mailbox, 1)
            await until(lambda: each.handler.frames)  # noqa: B023 - awaited here
        yield one, two, victim


async def check_traffic(one: Place, two: Place) -> None:
    """Check that frames and broadcasts arrive in both directions without any action of the test."""
    for sender, receiver in ((one, two), (two, one)):
        token = f"{time.monotonic()}"
        sender.bus.post(receiver.mailbox, (KIND, token))
        await sender.layer.group_send("group", {"n": token})
        expected = {(KIND, token), (GROUP_MESSAGE, "group", token)}
        await until(lambda: expected <= {simplified(frame) for frame in receiver.handler.frames})  # noqa: B023 - awaited here


def simplified(frame: tuple[Any, ...]) -> tuple[Any, ...]:
    return (*frame[:2], frame[2]["n"]) if frame[0] == GROUP_MESSAGE else frame


@pytest.mark.usefixtures("short_leases")
async def test_outages(start_redis: StartRedis) -> None:
    servers = {scenario: start_redis() for scenario in (pauses, comes_back_empty, is_flushed, has_no_room)}
    servers[comes_back_with_its_data] = start_redis("--appendonly", "yes", "--appendfsync", "always")
    async with asyncio.TaskGroup() as scenarios:
        for scenario, server in servers.items():
            scenarios.create_task(scenario(server), name=scenario.__name__)


async def pauses(server: RedisServer) -> None:
    """Pause Redis for longer than a lease: live processes keep their leases; the killed one is declared dead."""
    async with three_processes(server.url) as (one, two, victim):
        server.pause()
        began = time.monotonic()
        await asyncio.sleep(1)
        await victim.kill()
        one.bus.post(two.mailbox, (KIND, "posted in the outage"))
        await asyncio.sleep(began + OUTAGE - time.monotonic())  # the outage has to last
        assert not one.bus.available
        server.resume()
        back = time.monotonic()
        await until(lambda: (KIND, "posted in the outage") in two.handler.frames)
        await check_traffic(one, two)
        assert one.bus.available
        await until(lambda: one.handler.dead and two.handler.dead, GRACE + SLACK)
        # After the grace time, or a lease after the last beat of the killed process, which Redis read only now.
        assert time.monotonic() - back > LEASE - BEAT
        await asyncio.sleep(GRACE + 2 * BEAT - (time.monotonic() - back))
        assert one.handler.dead == two.handler.dead == [victim.mailbox]
        assert one.handler.lost == two.handler.lost == []


async def comes_back_empty(server: RedisServer) -> None:
    """Restart Redis without data: each process is interrupted and recovers; the killed one is declared dead."""
    async with three_processes(server.url) as (one, two, victim):
        await asyncio.to_thread(server.kill)
        await victim.kill()
        await asyncio.to_thread(server.start)
        back = time.monotonic()
        await until(lambda: one.handler.interruptions and two.handler.interruptions)
        in_time(time.monotonic() - back, AT_ONCE)
        await check_traffic(one, two)
        assert [one.handler.interruptions, two.handler.interruptions] == [1, 1]
        await until(lambda: one.handler.dead and two.handler.dead, GRACE + BEAT + SLACK)
        assert time.monotonic() - back > GRACE - 0.5
        await asyncio.sleep(3 * BEAT)
        assert one.handler.dead == two.handler.dead == [victim.mailbox]
        assert one.layer.counts["interruption"] == 1


async def comes_back_with_its_data(server: RedisServer) -> None:
    """Restart Redis with its data: every lease has expired, and only the one of the killed process is not renewed."""
    async with three_processes(server.url) as (one, two, victim):
        await asyncio.to_thread(server.terminate)
        await victim.kill()
        await asyncio.sleep(OUTAGE)
        await asyncio.to_thread(server.start)
        back = time.monotonic()
        await until(lambda: one.handler.interruptions and two.handler.interruptions)
        await check_traffic(one, two)
        await until(lambda: one.handler.dead and two.handler.dead, GRACE + BEAT + SLACK)
        assert time.monotonic() - back > GRACE - 0.5
        await asyncio.sleep(3 * BEAT)
        assert one.handler.dead == two.handler.dead == [victim.mailbox]
        assert [one.handler.interruptions, two.handler.interruptions] == [1, 1]


async def is_flushed(server: RedisServer) -> None:
    """Flush Redis: processes recover without a broken connection, and a missing mailbox alone ends no lease."""
    async with three_processes(server.url) as (one, two, victim), peer(server.url, "asgibus") as late:
        await late.do("join", "group")
        await victim.kill()
        late.signal(signal.SIGSTOP)
        with redis.Redis.from_url(server.url, protocol=2) as admin:
            admin.flushall()
        flushed = time.monotonic()
        one.bus.post(late.mailbox, (KIND, "lost"))
        await until(lambda: one.handler.lost == [late.mailbox])
        await until(lambda: one.handler.interruptions and two.handler.interruptions)
        in_time(time.monotonic() - flushed, AT_ONCE)
        await check_traffic(one, two)
        late.signal(signal.SIGCONT)
        await until(lambda: late.all("interrupted"))
        one.bus.post(late.mailbox, (KIND, "found"))
        await until(lambda: ["found"] in late.all("frame"))
        assert ["lost"] not in late.all("frame")
        await late.do("post", one.mailbox, 1)
        await one.layer.group_send("group", {"n": "all"})
        await until(lambda: ["group", {"n": "all"}] in late.all("frame"))
        await until(lambda: one.handler.dead and two.handler.dead and late.all("dead"), GRACE + BEAT + SLACK)
        assert time.monotonic() - flushed > GRACE - 0.5
        await asyncio.sleep(3 * BEAT)
        assert one.handler.dead == two.handler.dead == late.all("dead") == [victim.mailbox]
        assert [one.handler.interruptions, two.handler.interruptions, len(late.all("interrupted"))] == [1, 1, 1]


async def has_no_room(server: RedisServer) -> None:
    """Fill the memory of Redis: writes fail, but live processes keep their leases."""
    async with three_processes(server.url) as (one, two, other):
        with redis.Redis.from_url(server.url, protocol=2) as admin:
            admin.config_set("maxmemory", "1kb")
            with pytest.raises(LayerUnavailable, match="OOM"):
                await one.layer.send("ordinary", {})
            one.bus.post(other.mailbox, (KIND, 0))  # waits, and the beats must not wait behind it
            await asyncio.sleep(LEASE + NOTICED)
            now = admin.time()[0] * 1000
            live = set(admin.zrange("asgibus:processes", now, "+inf", byscore=True))
            assert live >= {each.mailbox.encode() for each in (one, two, other)}
            admin.config_set("maxmemory", "0")
        await until(lambda: other.all("frame") == [[0]])
        await check_traffic(one, two)
        assert one.handler.dead == two.handler.dead == other.all("dead") == []
        assert one.handler.interruptions == two.handler.interruptions == len(other.all("interrupted")) == 0


# Messages of apps during an outage.


async def failure(call: Any) -> tuple[str, float]:
    """Return the error text of a call while Redis is away, and the seconds until the error."""
    began = time.monotonic()
    with pytest.raises(LayerUnavailable) as raised:
        await call
    return str(raised.value), time.monotonic() - began


async def test_messages_sent_during_an_outage_are_never_written(
    start_redis: StartRedis, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "CALL_SECONDS", WAIT)
    server = start_redis()
    with caplog.at_level(logging.INFO, logger="asgibus.layers"):
        async with member(server.url, wait=WAIT) as one:
            await asyncio.to_thread(server.kill)
            await until(lambda: not one.bus.available)  # messages written earlier may have arrived
            calls = [
                one.layer.send("ordinary", {"n": 1}),
                one.layer.send(one.mailbox + "1", {"n": 2}),
                one.layer.group_send("group", {"n": 3}),
                one.layer.send("ordinary", {"n": 4}),
            ]
            flushing = asyncio.create_task(failure(one.layer.flush()))
            failures = await asyncio.gather(*map(failure, calls))
            in_time(max(seconds for _, seconds in (*failures, await flushing)), WAIT + SLACK)
            assert one.layer.counts["send failed"] == len(calls)
            assert not one.bus.available
            await asyncio.to_thread(server.start)
            await until(lambda: one.bus.available and one.handler.interruptions)
            await one.layer.send("ordinary", {"n": "after"})
            assert await asyncio.wait_for(one.layer.receive("ordinary"), 30) == {"n": "after"}
            other = RedisChannelLayer(server.url)  # which waits longer: until the members are back
            await other.group_send("group", {"n": "after"})
            await other.close()
            await until(lambda: one.handler.frames)
            assert one.handler.frames == [(GROUP_MESSAGE, "group", {"n": "after"})]
    assert all("nothing was written" in error for error, _ in failures)
    assert caplog.text.count("a message of the app was not sent") == 1
    assert caplog.text.count(f"{len(calls)} calls of apps failed while Redis was away") == 1
    assert caplog.text.count(" is gone (") == caplog.text.count(f"{one.layer.address} is back") == 1


async def test_cancelled_calls_are_not_written_after_an_outage(start_redis: StartRedis) -> None:
    server = start_redis()
    async with member(server.url) as one:
        await asyncio.to_thread(server.kill)
        await until(lambda: not one.bus.available)
        calls = [
            asyncio.create_task(call)
            for call in (
                one.layer.send("ordinary", {"n": 1}),
                one.layer.send("ordinary", {"n": 2}, delay=0.01),
                one.layer.send(one.mailbox + "1", {"n": 3}),
                one.layer.group_add("late", "ordinary"),
            )
        ]
        await asyncio.wait(calls, timeout=0.1)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        await asyncio.to_thread(server.start)
        await until(lambda: one.bus.available and one.handler.interruptions)
        await one.layer.group_send("late", {"n": 4})
        await one.layer.send("ordinary", {"n": "after"})
        assert await asyncio.wait_for(one.layer.receive("ordinary"), 30) == {"n": "after"}
        assert (await one.layer.channel_statistics("ordinary"))["messages_count"] == 1
        assert one.handler.frames == []


async def test_messages_just_after_an_outage_have_not_expired(redis_url: str) -> None:
    url = urlsplit(redis_url)
    with TcpProxy((str(url.hostname), int(url.port or 0))) as proxy:
        layer = RedisChannelLayer(proxy.url + url.path, expiry=1)
        sender = RedisChannelLayer(redis_url, expiry=1)
        channel = await layer.new_channel()
        proxy.blackhole("writer")
        proxy.reset("writer")
        await asyncio.sleep(1.3)  # of an outage that is longer than the expiry
        proxy.heal()
        proxy.delay(0.15, "writer")  # so that some time passes between two beats
        sent, received = 0, []
        for _ in range(100):
            await sender.send(channel, {"n": sent})
            sent += 1
            received.append(await asyncio.wait_for(layer.receive(channel), 30))
            await asyncio.sleep(0.01)
        assert [message["n"] for message in received] == list(range(sent))
        proxy.heal()
        for each in (layer, sender):
            await each.close()


# Layers that are being opened.


async def test_calls_to_a_silent_redis_fail_in_time_side_by_side(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "CONNECT_SECONDS", WAIT)
    monkeypatch.setattr(pipeline, "CALL_SECONDS", WAIT)
    url = urlsplit(redis_url)
    with TcpProxy((str(url.hostname), int(url.port or 0))) as proxy:
        proxy.blackhole()
        layer = RedisChannelLayer(proxy.url + url.path, wait=WAIT)
        calls = [call for _ in range(3) for call in (layer.send("a", {}), layer.group_add("a", "b"))]
        creations = [layer.new_channel() for _ in range(3)]
        failures = await asyncio.gather(*map(failure, [*calls, *creations]))
        in_time(max(seconds for _, seconds in failures), WAIT + SLACK)
        proxy.heal()
        await layer.send("a", {})
        proxy.blackhole()
        failures = await asyncio.gather(*(failure(layer.new_channel()) for _ in range(3)))
        in_time(max(seconds for _, seconds in failures), WAIT + DRAIN_SECONDS + SLACK)
        proxy.heal()
        await layer.new_channel()
        proxy.blackhole()
        await asyncio.wait_for(
            layer.new_channel("other"), 10
        )  # a name needs nothing of Redis once the mailbox is there
        proxy.heal()
        await layer.close()


@pytest.mark.parametrize("turns", [1, 20, 60])
async def test_close_ends_connections_that_are_being_opened(start_redis: StartRedis, turns: int) -> None:
    server = start_redis()
    layer = RedisChannelLayer(server.url)
    opening = [asyncio.create_task(call) for call in (layer.new_channel(), layer.receive("a"))]
    for _ in range(turns):
        await asyncio.sleep(0)  # the test needs the progress so far
    await layer.close()
    opening[1].cancel()
    await asyncio.gather(*opening, return_exceptions=True)
    with redis.Redis.from_url(server.url, protocol=2) as admin:
        await until(lambda: not [each for each in admin.client_list() if each["name"]])
        assert admin.keys("*") == []


async def test_a_cancelled_close_closes_everything(start_redis: StartRedis) -> None:
    server = start_redis()
    layer = RedisChannelLayer(server.url)
    channel = await layer.new_channel()
    receiving = asyncio.create_task(layer.receive(channel))
    await asyncio.sleep(0)  # until the call waits
    server.pause()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(layer.close(), 0.1)
    server.resume()
    with pytest.raises(LayerUnavailable, match="the layer was closed"):
        await asyncio.wait_for(receiving, 10)
    with redis.Redis.from_url(server.url, protocol=2) as admin:
        await until(lambda: not [each for each in admin.client_list() if each["name"]])
        assert admin.keys("*") == []


async def test_a_mailbox_that_cannot_be_opened_leaves_no_keys(start_redis: StartRedis) -> None:
    server = start_redis()
    with redis.Redis.from_url(server.url, protocol=2) as admin:
        admin.execute_command("ACL", "SETUSER", "limited", "on", ">secret", "~*", "&*", "+@all", "-eval")
        layer = RedisChannelLayer(server.url.replace("//", "//limited:secret@"))
        for _ in range(2):
            await failure(layer.new_channel())
        assert admin.keys("*") == []
        admin.execute_command("ACL", "SETUSER", "limited", "+eval")
        assert await layer.new_channel()
        await layer.close()
        assert admin.keys("*") == []


# Failover.


async def test_a_mailbox_is_read_after_a_failover_to_a_stale_replica(start_redis: StartRedis) -> None:
    """A new master with a clock behind that of the old one writes entries whose ids are below the cursor."""
    master, replica = (start_redis("--repl-diskless-sync-delay", "0") for _ in range(2))
    with TcpProxy(("127.0.0.1", master.port)) as proxy:
        async with member(proxy.url) as one, member(proxy.url) as two:
            key = f"asgibus:mailbox:{two.mailbox}"
            with redis.Redis.from_url(replica.url, protocol=2) as admin:
                admin.replicaof("127.0.0.1", master.port)
                await until(lambda: admin.info("replication")["master_link_status"] == "up" and admin.exists(key))
                admin.replicaof("NO", "ONE")
            with redis.Redis.from_url(master.url, protocol=2) as admin:
                ahead = (admin.time()[0] + 3600) * 1000
                admin.xadd(key, {"b": pack((PAYLOAD_VERSION, one.mailbox, ((KIND, "tail"),)))}, id=f"{ahead}-0")
            await until(lambda: two.handler.frames == [(KIND, "tail")])
            proxy.target = ("127.0.0.1", replica.port)
            await asyncio.to_thread(master.kill)
            await until(lambda: one.handler.interruptions and two.handler.interruptions)
            await check_traffic(one, two)
            assert [one.handler.interruptions, two.handler.interruptions] == [1, 1]
            assert two.handler.dead == one.handler.dead == []


@asynccontextmanager
async def sentinel_set(folder: Path) -> AsyncIterator[SentinelSet]:
    binary = shutil.which("redis-server")
    if binary is None:
        pytest.skip("no redis-server binary")
    sentinels = SentinelSet(binary, folder)
    await asyncio.to_thread(sentinels.__enter__)
    try:
        yield sentinels
    finally:
        await asyncio.to_thread(sentinels.__exit__, None, None, None)


async def test_a_failover(tmp_path: Path) -> None:
    """Processes reconnect to the new master of Sentinel, and none is declared dead."""
    async with sentinel_set(tmp_path) as sentinels, member(sentinels.url) as one, member(sentinels.url) as two:
        await check_traffic(one, two)
        await asyncio.to_thread(sentinels.master.kill)
        one.bus.post(two.mailbox, (KIND, "posted in the outage"))
        await asyncio.to_thread(sentinels.wait_promoted)
        promoted = time.monotonic()
        await until(lambda: one.handler.interruptions and two.handler.interruptions)
        in_time(time.monotonic() - promoted, 3 + SLACK)
        await until(lambda: (KIND, "posted in the outage") in two.handler.frames or one.handler.lost)
        await check_traffic(one, two)
        assert one.handler.dead == two.handler.dead == []
        assert str(one.layer.address) == sentinels.url


async def test_processes_leave_a_hung_master_that_returns(tmp_path: Path) -> None:
    """Processes leave a hung master, which for some seconds after its return still believes to be master."""
    async with sentinel_set(tmp_path) as sentinels, member(sentinels.url) as one, member(sentinels.url) as two:
        await check_traffic(one, two)
        other = RedisChannelLayer(sentinels.url)  # a layer that only sends
        await other.group_send("group", {"n": "before"})
        receiving = asyncio.create_task(two.layer.receive("ordinary"))
        claiming = asyncio.create_task(two.bus.claim(["work"], 1))
        old = redis.Redis.from_url(sentinels.master.url, protocol=2)
        with old:
            await until(lambda: {client["cmd"] for client in old.client_list()} >= {"blmove", "xreadgroup", "xread"})
            sentinels.master.pause()
            await asyncio.to_thread(sentinels.wait_promoted)
            sentinels.master.resume()
            resumed = time.monotonic()
            assert old.role()[0] == b"master"

            def clients() -> list[str]:
                names = (client["name"] for client in old.client_list())
                return [name for name in names if name and not name.startswith("sentinel-")]

            await until(lambda: not clients())
            in_time(time.monotonic() - resumed, 2 + SLACK)
            # The call raises, since its connection ended, unless its turn of two seconds had ended just before.
            if (await asyncio.wait([receiving], timeout=1))[0]:
                with pytest.raises(LayerUnavailable):
                    receiving.result()
                receiving = asyncio.create_task(two.layer.receive("ordinary"))
            one.bus.offer("work", ("offered",))
            await other.group_send("group", {"n": "behind"})
            await other.send("ordinary", {"n": "ordinary"})
            expected = (GROUP_MESSAGE, "group", {"n": "behind"})
            await until(lambda: expected in one.handler.frames and expected in two.handler.frames)
            in_time(time.monotonic() - resumed, 8 + SLACK)  # with the three seconds for all to be back
            assert old.role()[0] == b"master"
            await asyncio.wait([receiving, claiming], timeout=30)
        (claim,) = claiming.result()
        assert (claim.entry, receiving.result()) == (("offered",), {"n": "ordinary"})
        two.bus.done(claim)
        assert one.handler.dead == two.handler.dead == []
        await other.close()


async def test_a_sender_leaves_a_demoted_master(start_redis: StartRedis) -> None:
    """A sender leaves a demoted master at the first READONLY error, without Sentinel closing the connection."""
    master, replica = start_redis(), start_redis()
    with TcpProxy(("127.0.0.1", master.port)) as proxy:
        layer = RedisChannelLayer(proxy.url)
        await layer.send("ordinary", {"n": 1})
        with redis.Redis.from_url(master.url, protocol=2) as admin:
            admin.replicaof("127.0.0.1", replica.port)
            proxy.target = ("127.0.0.1", replica.port)
            with pytest.raises(LayerUnavailable, match="READONLY"):
                await layer.send("ordinary", {"n": 2})
            await layer.send("ordinary", {"n": 3})
        assert await asyncio.wait_for(layer.receive("ordinary"), 30) == {"n": 3}
        await layer.close()
