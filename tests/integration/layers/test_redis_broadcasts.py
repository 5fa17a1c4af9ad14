"""Broadcasts while Redis loses its data: each member gets them once, or the call of the sender fails."""

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import redis

from asgibus.layers import LayerUnavailable, RedisChannelLayer
from asgibus.layers.frames import GROUP_MESSAGE
from asgibus.layers.redis import heartbeat
from support.bus import Recorder, until
from support.clocks import WallClock, stepping_server
from support.deadline import in_time, wait_until
from support.peers import Place, peer, place
from support.redis import RedisServer
from support.tcp_proxy import TcpProxy

pytestmark = pytest.mark.anyio

StartRedis = Callable[..., RedisServer]
AT_ONCE = 1.2
"""Seconds of a broadcast that waits for no process; less than the three of one that does."""


@asynccontextmanager
async def member(url: str) -> AsyncIterator[Place]:
    async with place(url, "asgibus") as one:
        await one.bus.join_group("group")
        yield one


def received_by(*members: Place) -> list[list[str]]:
    """Return the numbers of the broadcasts that each member received, in order."""
    return [[frame[2]["n"] for frame in one.handler.frames if frame[0] == GROUP_MESSAGE] for one in members]


async def broadcast(layer: RedisChannelLayer, text: str) -> tuple[str, str]:
    """Broadcast a text. Return the text, and the message of the error that the call raised, empty without one."""
    try:
        await layer.group_send("group", {"n": text})
    except LayerUnavailable as error:
        return text, str(error)
    return text, ""


async def broadcast_seconds(layer: RedisChannelLayer, text: str = "in time") -> float:
    """Return the seconds that a broadcast takes."""
    began = asyncio.get_running_loop().time()
    await layer.group_send("group", {"n": text})
    return asyncio.get_running_loop().time() - began


async def test_broadcasts_while_redis_loses_its_data(start_redis: StartRedis) -> None:
    async with asyncio.TaskGroup() as scenarios:
        scenarios_of_loss = (
            *(is_flushed, is_flushed_while_a_member_hangs, comes_back_empty, no_member_comes_back),
            *(comes_back_late_in_a_call, is_killed_before_a_member_has_read, comes_back_too_late),
        )
        for scenario in scenarios_of_loss:
            scenarios.create_task(scenario(start_redis()), name=scenario.__name__)


async def is_flushed(server: RedisServer) -> None:
    """Flush Redis and broadcast before any process has noticed; a new sender does not wait."""
    other, fresh = (RedisChannelLayer(server.url) for _ in range(2))
    async with member(server.url) as one, member(server.url) as two:
        await other.group_send("group", {"n": "before"})
        with redis.Redis.from_url(server.url, protocol=2) as admin:
            admin.flushall()
        in_time(await broadcast_seconds(fresh, "perhaps"), AT_ONCE)  # only members that have noticed the flush get this
        results = await asyncio.gather(
            *(broadcast(layer, text) for layer, text in ((other, "other"), (one.layer, "one"), (two.layer, "two")))
        )
        assert results == [("other", ""), ("one", ""), ("two", "")]

        def certain() -> list[list[str]]:
            return [[text for text in each if text != "perhaps"] for each in received_by(one, two)]

        await until(lambda: all(len(each) >= 4 for each in certain()))
        in_time(await broadcast_seconds(other), AT_ONCE)
        await until(lambda: all(len(each) >= 5 for each in certain()))
        assert [sorted(each) for each in certain()] == [["before", "in time", "one", "other", "two"]] * 2
        assert other.counts["send failed"] == 0
        assert one.layer.counts["group unheard"] == 0
    await other.close()
    await fresh.close()


async def is_flushed_while_a_member_hangs(server: RedisServer) -> None:
    """Flush Redis while a member hangs: a broadcast waits for the member, although its sender has recovered."""
    async with member(server.url) as one, peer(server.url, "asgibus") as two:
        await two.do("join", "group")
        await one.layer.group_send("group", {"n": "before"})
        two.signal(signal.SIGSTOP)
        with redis.Redis.from_url(server.url, protocol=2) as admin:
            admin.flushall()
            sending = asyncio.create_task(broadcast(one.layer, "after"))
            await until(lambda: one.handler.interruptions and admin.zcard("asgibus:group:group") == 1)
            began = asyncio.get_running_loop().time()
            await asyncio.wait([sending], timeout=1)  # the member hangs for longer than the others need
            assert not sending.done()
        two.signal(signal.SIGCONT)
        assert await sending == ("after", "")
        in_time(asyncio.get_running_loop().time() - began, 3.5)
        await until(lambda: len(two.all("frame")) == 2 and len(one.handler.frames) == 2)
        assert received_by(one) == [["before", "after"]]
        assert [frame[1]["n"] for frame in two.all("frame")] == ["before", "after"]


async def comes_back_empty(server: RedisServer) -> None:
    """Restart Redis without data: each broadcast of that time reaches all members, or its call fails."""
    other = RedisChannelLayer(server.url)
    async with member(server.url) as one, member(server.url) as two:
        await other.group_send("group", {"n": "before"})
        await asyncio.to_thread(server.kill)
        sending = [asyncio.create_task(broadcast(other, f"away {number}")) for number in range(3)]
        await asyncio.to_thread(server.start)
        sending += [asyncio.create_task(broadcast(layer, "back")) for layer in (one.layer, other)]
        results = [await each for each in sending]
        assert (await broadcast(other, "after"))[1] == ""
        await until(lambda: all("after" in each for each in received_by(one, two)))
        expected = sorted(["before", "after", *(text for text, error in results if not error)])
        assert [sorted(each) for each in received_by(one, two)] == [expected] * 2
        assert other.counts["send failed"] + one.layer.counts["send failed"] == sum(bool(error) for _, error in results)
    await other.close()


async def comes_back_late_in_a_call(server: RedisServer) -> None:
    """Restart Redis late in a call: the call fails, since members may still come back when its time is over."""
    other = RedisChannelLayer(server.url)
    async with peer(server.url, "asgibus") as two:
        await two.do("join", "group")
        await other.group_send("group", {"n": "before"})
        await until(lambda: two.all("frame"))
        await asyncio.to_thread(server.kill)
        two.signal(signal.SIGSTOP)
        sending = asyncio.create_task(broadcast(other, "away"))
        await asyncio.wait([sending], timeout=3.5)  # of its five seconds
        await asyncio.to_thread(server.start)
        text, error = await sending
        assert (text, "" if not error else "an error") == ("away", "an error")
        two.signal(signal.SIGCONT)
        assert await broadcast(other, "back") == ("back", "")
        await until(lambda: len(two.all("frame")) == 2)
        assert two.all("frame")[1] == ["group", {"n": "back"}]
    await other.close()


async def is_killed_before_a_member_has_read(server: RedisServer) -> None:
    """Kill Redis with a confirmed message that was not read: the message is sent again, however long the outage."""
    other = RedisChannelLayer(server.url)
    async with peer(server.url, "asgibus") as two:
        await two.do("join", "group")
        two.signal(signal.SIGSTOP)
        for text in ("fetched", "not fetched"):  # the first one ends the read that waits in Redis
            await other.group_send("group", {"n": text})
        await asyncio.to_thread(server.kill)
        two.signal(signal.SIGCONT)
        await asyncio.sleep(4.0)  # the length of the outage
        await asyncio.to_thread(server.start)
        await until(lambda: len(two.all("frame")) == 2)
        assert [frame[1]["n"] for frame in two.all("frame")] == ["fetched", "not fetched"]
        assert other.counts["message repeated"] >= 1
    await other.close()


async def comes_back_too_late(server: RedisServer) -> None:
    """Keep Redis away for longer than the expiry: the message is counted as lost."""
    other = RedisChannelLayer(server.url, expiry=2, wait=20)
    async with member(server.url) as one:
        await other.group_send("group", {"n": "before"})
        await until(lambda: len(one.handler.frames) == 1)
        await asyncio.to_thread(server.kill)
        await asyncio.sleep(2.5)  # the length of the outage
        await asyncio.to_thread(server.start)
        assert (await broadcast(other, "after"))[1] == ""
        await until(lambda: len(one.handler.frames) == 2)
        assert received_by(one) == [["before", "after"]]
        assert (other.counts["message lost"], other.counts["message repeated"]) == (1, 0)
    await other.close()


async def no_member_comes_back(server: RedisServer) -> None:
    """Broadcast to a group whose members have all left: one call waits in vain, and the next returns at once."""
    other = RedisChannelLayer(server.url)
    async with member(server.url):
        await other.group_send("group", {"n": "before"})
    with redis.Redis.from_url(server.url, protocol=2) as admin:
        assert admin.keys("asgibus:processes") == []
    began = asyncio.get_running_loop().time()
    assert await broadcast(other, "in vain") == ("in vain", "")
    in_time(asyncio.get_running_loop().time() - began, 5.5)
    in_time(await broadcast_seconds(other), AT_ONCE)
    assert other.counts["send failed"] == 0
    await other.close()


async def test_broadcasts_after_a_start_from_an_old_snapshot(start_redis: StartRedis) -> None:
    """Broadcasts reach members that joined after the snapshot from which Redis starts."""
    server = start_redis()
    other = RedisChannelLayer(server.url)
    async with member(server.url) as one, peer(server.url, "asgibus") as two:
        with redis.Redis.from_url(server.url, protocol=2) as admin:
            admin.save()
        await two.do("join", "group")
        await other.group_send("group", {"n": "before"})
        await until(lambda: two.all("frame"))
        two.signal(signal.SIGSTOP)  # this member returns later than the others
        await asyncio.to_thread(server.kill)
        await asyncio.to_thread(server.start)
        late = RedisChannelLayer(server.url)  # a layer that has not seen the earlier data
        senders = {"one": one.layer, "other": other, "late": late}
        sending = [asyncio.create_task(broadcast(layer, text)) for text, layer in senders.items()]
        await until(lambda: one.handler.interruptions)
        await asyncio.wait(sending, timeout=1)  # two hangs for longer than the others need
        assert not any(each.done() for each in sending)
        two.signal(signal.SIGCONT)
        assert sorted([await each for each in sending]) == sorted((text, "") for text in senders)
        await until(lambda: len(two.all("frame")) == 4 and len(one.handler.frames) == 4)
        expected = ["before", *sorted(senders)]
        assert sorted(received_by(one)[0]) == sorted(frame[1]["n"] for frame in two.all("frame")) == expected
        for layer in (*senders.values(), RedisChannelLayer(server.url)):
            in_time(await broadcast_seconds(layer), AT_ONCE)
            if layer is not one.layer:
                await layer.close()


async def test_a_broadcast_waits_once_for_processes_in_an_old_snapshot(start_redis: StartRedis) -> None:
    server = start_redis()
    async with member(server.url):
        with redis.Redis.from_url(server.url, protocol=2) as admin:
            admin.save()
    await asyncio.to_thread(server.kill)
    await asyncio.to_thread(server.start)
    layer = RedisChannelLayer(server.url)
    in_time(await broadcast_seconds(layer), 5.5)
    in_time(await broadcast_seconds(layer), AT_ONCE)
    await layer.close()


async def test_messages_reach_a_live_process_without_a_mailbox(
    redis_url: str, admin: "redis.Redis[bytes]", monkeypatch: pytest.MonkeyPatch
) -> None:
    """Messages arrive although Redis has evicted the mailbox: its process makes a new one at its next heartbeat."""
    monkeypatch.setattr(heartbeat, "BEAT_SECONDS", 0.3)
    other = RedisChannelLayer(redis_url)
    async with member(redis_url) as one:
        for number in range(3):
            admin.delete(f"asgibus:mailbox:{one.mailbox}")
            await other.group_send("group", {"n": f"group {number}"})
            admin.delete(f"asgibus:mailbox:{one.mailbox}")
            await other.send(one.mailbox + "1", {"n": f"direct {number}"})
        await until(lambda: len(one.handler.frames) == 6)
        received = [frame[2]["n"] for frame in one.handler.frames]
        assert received == [f"{text} {number}" for number in range(3) for text in ("group", "direct")]
    await other.close()


async def test_a_broadcast_fails_for_a_live_member_without_a_mailbox(
    redis_url: str, admin: "redis.Redis[bytes]"
) -> None:
    other = RedisChannelLayer(redis_url)
    async with peer(redis_url, "asgibus") as two:
        await two.do("join", "group")
        await two.kill()
        admin.delete(f"asgibus:mailbox:{two.mailbox}")
        assert "its process lives" in (await broadcast(other, "early"))[1]  # its lease has not ended
        admin.zadd("asgibus:processes", {two.mailbox: 1})
        in_time(await broadcast_seconds(other), AT_ONCE)
        assert admin.zcard("asgibus:group:group") == 0
    await other.close()


async def test_a_clock_step_of_redis_loses_no_broadcast(tmp_path: Path) -> None:
    """Broadcasts arrive although a clock step expires keys and ends leases."""
    with stepping_server(tmp_path) as (server, clock):
        await broadcast_at_clock_steps(server, clock)


async def broadcast_at_clock_steps(server: RedisServer, clock: WallClock) -> None:
    other = RedisChannelLayer(server.url)
    async with member(server.url) as one, member(server.url) as two:
        await other.group_send("group", {"n": "before"})
        expected = ["before"]
        for step in (90, 180, -3600):
            clock.step(step)
            for number in range(50):
                text, error = await broadcast(other, f"{step} {number}")
                assert not error
                expected.append(text)
        await until(lambda: all(len(each) >= len(expected) for each in received_by(one, two)))
        assert received_by(one, two) == [expected] * 2
        assert one.handler.dead == two.handler.dead == []
    await other.close()


async def test_a_broadcast_waits_for_live_members_without_mailboxes(
    redis_url: str, admin: "redis.Redis[bytes]"
) -> None:
    """A broadcast removes members without a lease from the group, and after a loss of data waits for the others."""
    parts = urlsplit(redis_url)
    with TcpProxy((parts.hostname or "", parts.port or 6379)) as proxy:
        proxy.before(b"lost", admin.flushall)
        async with member(redis_url) as one:
            other = RedisChannelLayer(f"{proxy.url}{parts.path}")
            admin.zadd("asgibus:group:group", {"gone.1!": 2**45, "gone.2!local": 2**45})
            await other.group_send("group", {"n": "before"})
            await until(lambda: received_by(one) == [["before"]])
            assert admin.zrange("asgibus:group:group", 0, -1) == [one.mailbox.encode()]
            assert await broadcast(other, "lost") == ("lost", "")
            await until(lambda: received_by(one) == [["before", "lost"]])
            assert other.counts["send failed"] == 0
            await other.close()


@pytest.mark.usefixtures("regroup")
async def test_a_broadcast_that_lost_its_reply_and_then_its_mailbox_arrives_once(
    redis_url: str, admin: "redis.Redis[bytes]"
) -> None:
    """The second write of a broadcast in doubt has the number of the first, though it waits for the mailbox."""
    parts = urlsplit(redis_url)
    with TcpProxy((parts.hostname or "", parts.port or 6379)) as proxy:
        async with member(redis_url) as one:
            other = RedisChannelLayer(f"{proxy.url}{parts.path}")
            await other.group_send("group", {"n": "before"})

            def lose_data() -> None:
                wait_until(lambda: received_by(one) == [["before", "doubtful"]], what="the first copy")
                admin.flushall()

            proxy.cut_request(rb"XADD.*doubtful", arrives=True, then=lose_data)
            await other.group_send("group", {"n": "doubtful"})
            await other.group_send("group", {"n": "after"})
            await until(lambda: received_by(one)[0][-1] == "after")
            assert received_by(one) == [["before", "doubtful", "after"]]
            assert proxy.requests_cut == 1
            await other.close()


async def test_a_broadcast_does_not_wait_for_processes_that_left(redis_url: str) -> None:
    layer = RedisChannelLayer(redis_url)
    async with layer.bus("a", Recorder()) as bus:
        await bus.join_group("group")
        in_time(await broadcast_seconds(layer), AT_ONCE)
    in_time(await broadcast_seconds(layer), AT_ONCE)
    async with layer.bus("a", Recorder()) as bus:
        await bus.join_group("group")
        in_time(await broadcast_seconds(layer), AT_ONCE)
    await layer.close()


async def test_a_broadcast_without_a_bus_returns_at_once(redis_url: str, admin: "redis.Redis[bytes]") -> None:
    layer = RedisChannelLayer(redis_url)
    await layer.group_add("group", "ordinary")
    in_time(await broadcast_seconds(layer), AT_ONCE)
    admin.flushall()
    in_time(await broadcast_seconds(layer), AT_ONCE)
    await layer.close()


async def test_unread_broadcasts_when_redis_loses_its_data(start_redis: StartRedis) -> None:
    async with asyncio.TaskGroup() as scenarios:
        for scenario in (unread_and_flushed, unread_and_killed, unread_by_a_killed_member):
            scenarios.create_task(scenario(start_redis()), name=scenario.__name__)


async def unread_and_flushed(server: RedisServer) -> None:
    """Flush Redis with unread messages: both senders repeat theirs, even the one that notices only at its next send."""
    other = RedisChannelLayer(server.url)
    async with member(server.url) as one, peer(server.url, "asgibus") as two:
        await two.do("join", "group")
        two.signal(signal.SIGSTOP)
        for layer, name in ((one.layer, "one"), (other, "other")):
            for number in range(3):
                await layer.group_send("group", {"n": f"{name} {number}"})
            await layer.send(f"{two.mailbox}1", {"n": f"{name} direct"})
        with redis.Redis.from_url(server.url, protocol=2) as admin:
            admin.flushall()
        two.signal(signal.SIGCONT)
        assert (await asyncio.gather(broadcast(one.layer, "one 3"), broadcast(other, "other 3"))) == [
            ("one 3", ""),
            ("other 3", ""),
        ]
        await until(lambda: {"one 3", "other 3"} <= {frame[-1]["n"] for frame in two.all("frame")})
        received = [frame[-1]["n"] for frame in two.all("frame")]
        for name in ("one", "other"):
            numbers = [each for each in received if each.startswith(f"{name} ")]
            assert numbers == [f"{name} 0", f"{name} 1", f"{name} 2", f"{name} direct", f"{name} 3"]
        assert sorted(received_by(one)[0]) == sorted(each for each in received if "direct" not in each)
        for layer in (one.layer, other):
            assert layer.counts["message repeated"] == 7  # also to the member that had read it
            assert layer.counts["message lost"] == 0
    await other.close()


async def unread_and_killed(server: RedisServer) -> None:
    """Kill Redis with unread broadcasts: each arrives once, although the sender sends nothing more."""
    async with member(server.url) as one, peer(server.url, "asgibus") as two:
        await two.do("join", "group")
        two.signal(signal.SIGSTOP)
        for number in range(3):
            await one.layer.group_send("group", {"n": number})
        await asyncio.to_thread(server.kill)
        two.signal(signal.SIGCONT)
        await asyncio.to_thread(server.start)
        await until(lambda: len(two.all("frame")) == 3)
        assert [frame[1]["n"] for frame in two.all("frame")] == [0, 1, 2]
        await until(lambda: one.layer.counts["message repeated"] >= 6)  # twice, if the new run id is noticed first
        assert received_by(one) == [[0, 1, 2]]


async def unread_by_a_killed_member(server: RedisServer) -> None:
    """Lose broadcasts to a killed member: the loss is counted and logged."""
    async with member(server.url) as one, peer(server.url, "asgibus") as two:
        await two.do("join", "group")
        two.signal(signal.SIGSTOP)
        for number in range(3):
            await one.layer.group_send("group", {"n": number})
        await two.kill()
        with redis.Redis.from_url(server.url, protocol=2) as admin:
            admin.flushall()
        await until(lambda: one.layer.counts["message lost"] == 3, 10)
