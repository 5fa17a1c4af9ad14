"""Keys in Redis: their names, their size, and the keys that remain at the end."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator

import pytest
import redis

from asgibus.layers import RedisChannelLayer
from asgibus.layers.frames import FIRST_PROTOCOL_KIND
from support.bus import Recorder, until
from support.deadline import in_time

pytestmark = pytest.mark.anyio

KIND = FIRST_PROTOCOL_KIND


@pytest.fixture
async def layer(redis_url: str) -> AsyncIterator[RedisChannelLayer]:
    layer = RedisChannelLayer(redis_url)
    yield layer
    await layer.close()


def calls(admin: "redis.Redis[bytes]", command: str) -> int:
    return int(admin.info("commandstats").get(f"cmdstat_{command}", {"calls": 0})["calls"])


async def test_frames_posted_during_a_flush_share_an_entry_per_mailbox(
    layer: RedisChannelLayer, admin: "redis.Redis[bytes]"
) -> None:
    readers = [Recorder() for _ in range(3)]
    async with (
        layer.bus("a", readers[0]) as a,
        layer.bus("b", readers[1]) as b,
        layer.bus("c", readers[2]) as c,
        layer.bus("d", Recorder()) as d,
    ):
        before = calls(admin, "xadd")
        d.post(a.mailbox, (KIND, "first"))
        await asyncio.sleep(0)  # the flush is written, and Redis has not replied
        for number in range(200):
            for bus in (a, b, c):
                d.post(bus.mailbox, (KIND, number))
        await d.drain()
        assert calls(admin, "xadd") - before == 1 + 3
        await until(lambda: [len(reader.frames) for reader in readers] == [201, 200, 200])
        assert all(len(reader.batches) <= 2 for reader in readers)


async def test_a_lone_frame_is_written_at_once(layer: RedisChannelLayer) -> None:
    reader = Recorder()
    loop = asyncio.get_running_loop()
    async with layer.bus("a", reader) as a:
        seconds = []
        for number in range(20):
            posted = loop.time()
            a.post(a.mailbox, (KIND, number))
            await until(lambda number=number: len(reader.frames) > number)  # type: ignore[misc]
            seconds.append(loop.time() - posted)
        in_time(min(seconds), 0.05)  # a timer would delay every frame


async def test_the_length_of_a_mailbox_is_bounded(layer: RedisChannelLayer, admin: "redis.Redis[bytes]") -> None:
    reader = Recorder()
    async with layer.bus("a", reader) as a:
        key = f"asgibus:mailbox:{a.mailbox}"
        for number in range(1500):
            a.post(a.mailbox, (KIND, number))
            await a.drain()
        await until(lambda: len(reader.frames) == 1500)
        assert admin.xlen(key) <= 256 + 64 + 2
        assert 0 < admin.ttl(key) <= 60


async def test_the_memory_of_a_mailbox_is_bounded(layer: RedisChannelLayer, admin: "redis.Redis[bytes]") -> None:
    reader = Recorder()
    part = bytes(64 * 1024)
    async with layer.bus("a", reader) as a:
        key = f"asgibus:mailbox:{a.mailbox}"
        for number in range(200):
            a.post(a.mailbox, (KIND, number, part), len(part))
            await a.drain()
            await until(lambda number=number: len(reader.frames) > number)  # type: ignore[misc]
        assert admin.memory_usage(key) < 3 * 1024 * 1024


async def test_shared_channels_hold_only_unfinished_messages(
    layer: RedisChannelLayer, admin: "redis.Redis[bytes]"
) -> None:
    async with layer.bus("i", Recorder()) as interface, layer.bus("w", Recorder()) as worker:
        for number in range(10):
            interface.offer("x", (number,))
        await interface.drain()
        claims = await worker.claim(["x"], 10)
        assert admin.xpending("asgibus:shared:x", "workers")["pending"] == len(claims) == 10
        for claim in claims:
            worker.done(claim)
        await worker.drain()
        assert admin.xpending("asgibus:shared:x", "workers")["pending"] == 0
        assert admin.xlen("asgibus:shared:x") == 0


async def test_a_clean_exit_leaves_nothing_but_the_shared_channels(
    layer: RedisChannelLayer, admin: "redis.Redis[bytes]", redis_url: str
) -> None:
    local = await layer.new_channel()
    await layer.send(local, {})
    await layer.receive(local)
    await layer.send("ordinary", {})
    await layer.receive("ordinary")
    await layer.group_add("group", local)
    async with layer.bus("i", Recorder()) as interface, layer.bus("w", Recorder()) as worker:
        await interface.join_group("group")
        await interface.join_group("other")
        interface.offer("x", (1,))
        withdrawn = interface.offer("y", (2,))
        (claim,) = await worker.claim(["x"], 5)
        interface.withdraw(withdrawn)
        worker.post(interface.mailbox, (KIND, 1))
        worker.done(claim)
        claiming = asyncio.create_task(worker.claim(["x", "y"], 5))
        await asyncio.wait([claiming], timeout=0.05)
        worker.stop_claiming()
        await claiming
    await layer.close()
    other = RedisChannelLayer(redis_url)
    await other.group_send("group", {})  # removes the local channel, whose process has ended
    await other.close()
    counts = {b"asgibus:counts:{asgibus:channel:ordinary}"}  # for the statistics of a day
    assert set(admin.keys("*")) - counts == {b"asgibus:shared:x", b"asgibus:shared:y"}
    for key in ("asgibus:shared:x", "asgibus:shared:y"):
        assert admin.xlen(key) == 0
        (group,) = admin.xinfo_groups(key)
        assert (group["name"], group["consumers"], group["pending"]) == (b"workers", 0, 0)
    await until(lambda: not [each for each in admin.client_list() if each["name"]])


async def test_every_key_begins_with_the_prefix(redis_url: str, admin: "redis.Redis[bytes]") -> None:
    first, second = (RedisChannelLayer(redis_url, prefix=prefix) for prefix in ("one*", "one"))
    for layer in (first, second):
        await layer.send("a", {"n": layer.prefix})
        await layer.group_add("group", "a")
    async with first.bus("x", Recorder()) as bus:
        bus.offer("x", (1,))
        await bus.drain()
        assert {key.partition(b":")[0] for key in admin.keys("*")} == {b"one*", b"one"}
    await first.flush()
    assert await second.receive("a") == {"n": "one"}
    assert admin.exists("one:group:group")
    assert not admin.exists("one*:group:group")
    await first.close()
    await second.close()


async def test_memberships_of_different_length_end_separately(redis_url: str) -> None:
    layer, brief = RedisChannelLayer(redis_url), RedisChannelLayer(redis_url, group_expiry=0.1)
    await layer.group_add("group", "long")
    await brief.group_add("group", "short")
    await asyncio.sleep(0.2)  # by Redis's clock, which a test cannot set
    await layer.group_send("group", {"n": 1})
    assert (await layer.channel_statistics("long"))["messages_pending"] == 1
    assert (await layer.channel_statistics("short"))["messages_pending"] == 0
    for each in (layer, brief):
        await each.close()


@pytest.mark.parametrize("prefix", ["a!b", "a b", "[a]*?", "{a", "a}", "ü:", "a\\"])
async def test_a_prefix_may_hold_any_character(redis_url: str, prefix: str) -> None:
    layer = RedisChannelLayer(redis_url, prefix=prefix)
    await layer.send("a", {"n": 1})
    await layer.group_add("group", await layer.new_channel())
    await layer.group_send("group", {"n": 2})
    assert (await layer.global_statistics())["messages_pending"] == 1
    await layer.flush()
    assert (await layer.global_statistics())["messages_count"] == 0
    await layer.close()


async def test_expired_messages_leave_redis(redis_url: str, admin: "redis.Redis[bytes]") -> None:
    layer = RedisChannelLayer(redis_url, expiry=1)
    await layer.send("a", {})
    assert admin.exists("asgibus:channel:a")
    await until(lambda: not admin.exists("asgibus:channel:a"))
    await layer.close()


async def test_full_local_channels_are_published(redis_url: str, admin: "redis.Redis[bytes]") -> None:
    layer = RedisChannelLayer(redis_url, capacity=1)
    channel = await layer.new_channel()
    key = f"asgibus:full:{{asgibus:mailbox:{channel.partition('!')[0]}!}}"
    local = channel.partition("!")[2].encode()
    await layer.send(channel, {"n": 1})
    await until(lambda: admin.smembers(key) == {local})
    assert admin.ttl(key) > 60
    assert await layer.receive(channel) == {"n": 1}
    await until(lambda: not admin.exists(key))
    await layer.send(channel, {}, delay=0.1)
    await until(lambda: admin.smembers(key) == {local})
    await layer.flush()
    await until(lambda: not admin.exists(key))
    await layer.send(channel, {"n": "last"})
    await asyncio.sleep(0.2)  # by Redis's clock, which a test cannot set
    assert await layer.receive(channel) == {"n": "last"}
    assert (await layer.channel_statistics(channel))["messages_pending"] == 0
    await layer.close()


READER = """
import asyncio, sys
from asgibus.layers import RedisChannelLayer

async def main():
    layer = RedisChannelLayer(sys.argv[1])
    while (message := await layer.receive("work"))["n"] is not None:
        print(message["n"], flush=True)
    await layer.close()

asyncio.run(main())
"""


def start_readers(count: int, url: str) -> list["subprocess.Popen[str]"]:
    command = [sys.executable, "-c", READER, url]
    return [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(count)]


async def test_a_waiting_reader_sends_two_commands_per_message(
    layer: RedisChannelLayer, admin: "redis.Redis[bytes]"
) -> None:
    await layer.send("x", {"number": 0})
    assert (await layer.receive("x"))["number"] == 0
    commands = "eval", "blmove", "lpop"  # to send, to wait, and to take
    before = [calls(admin, command) for command in commands]
    for number in range(1, 11):
        reader = asyncio.create_task(layer.receive("x"))
        await until(lambda: admin.info("clients")["blocked_clients"] == 1)
        await layer.send("x", {"number": number})
        assert (await reader)["number"] == number
    for command, count in zip(commands, before, strict=True):
        assert 10 <= calls(admin, command) - count <= 15, command  # some waits end by themselves on a busy machine
    reader = asyncio.create_task(layer.receive("x"))
    await until(lambda: admin.info("clients")["blocked_clients"] == 1)
    await layer.send("x", {"number": 11}, delay=0.01)
    assert (await reader)["number"] == 11


async def test_several_processes_get_each_message_once(redis_url: str) -> None:
    layer = RedisChannelLayer(redis_url, capacity=1000)
    readers = start_readers(3, redis_url)
    for number in range(400):
        await layer.send("work", {"n": number})
    for _ in readers:
        await layer.send("work", {"n": None})
    outputs = [(await asyncio.to_thread(reader.communicate, timeout=20))[0] for reader in readers]
    assert [reader.returncode for reader in readers] == [0, 0, 0]
    assert sorted(int(line) for output in outputs for line in output.split()) == list(range(400))
    await layer.close()
