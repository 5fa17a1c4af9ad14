"""Use of a layer object in several event loops: `async_to_sync` makes an event loop for every call."""

import asyncio
import contextlib
import gc
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from asgiref.sync import async_to_sync

from asgibus.layers import ChannelLayer, RedisChannelLayer
from asgibus.layers.frames import FIRST_PROTOCOL_KIND
from asgibus.layers.redis.local.channels import YOUNG_SECONDS
from asgibus.testing.conformance.tools import refused
from support.bus import MakeLayer, Recorder, until
from support.deadline import wait_until

KIND = FIRST_PROTOCOL_KIND


def test_successive_event_loops_use_a_layer_without_close(new_layer: MakeLayer) -> None:
    layer = new_layer()

    async def use(number: int) -> Any:
        await layer.send("ordinary", {"n": number})
        local = await layer.new_channel()
        await layer.group_add("group", local)
        await layer.group_send("group", {"n": -number})
        return (await layer.receive(local))["n"]

    assert [asyncio.run(use(number)) for number in range(1, 6)] == [-1, -2, -3, -4, -5]

    async def collect() -> list[Any]:
        received = [(await layer.receive("ordinary"))["n"] for _ in range(5)]
        await layer.close()
        return received

    assert asyncio.run(collect()) == [1, 2, 3, 4, 5]
    gc.collect()  # a connection that is still open would warn now


def test_channels_of_a_blocked_event_loop_accept_messages(redis_url: str) -> None:
    layer = RedisChannelLayer(redis_url, capacity=1)
    channels: list[str] = []
    blocked, over = threading.Event(), threading.Event()

    async def block() -> None:
        channels.append(await layer.new_channel())
        blocked.set()
        over.wait(20)

    async def ask() -> None:
        await layer.send(channels[0], {})
        await refused(layer, channels[0], {})
        assert (await layer.channel_statistics(channels[0]))["messages_pending"] == 1

    thread = threading.Thread(target=lambda: asyncio.run(block()))
    thread.start()
    try:
        assert blocked.wait(20)
        asyncio.run(ask())
    finally:
        over.set()
        thread.join()
    asyncio.run(layer.close())


def test_event_loops_of_several_threads_share_a_layer(new_layer: MakeLayer) -> None:
    layer = new_layer(capacity=1000)
    received: dict[int, list[int]] = {number: [] for number in range(3)}
    errors: list[BaseException] = []

    async def exchange(index: int) -> None:
        """Send 30 messages to the next thread over an ordinary channel, and receive 30."""
        for number in range(30):
            await layer.send(f"to.{(index + 1) % 3}", {"n": number})
        async with asyncio.timeout(20):
            while len(received[index]) < 30:
                received[index].append((await layer.receive(f"to.{index}"))["n"])
        await layer.close()

    def run(index: int) -> None:
        try:
            asyncio.run(exchange(index))
        except BaseException as error:  # noqa: BLE001 - shown below
            errors.append(error)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert all(numbers == list(range(30)) for numbers in received.values())


@pytest.mark.anyio
async def test_buses_of_two_threads_exchange_frames_and_claims(layer: ChannelLayer) -> None:
    """Frames, offers and claims are exchanged between event loops of two threads."""
    first, second = Recorder(), Recorder()
    mailboxes: dict[str, str] = {}
    claimed: list[Any] = []
    finish = threading.Event()

    async def serve() -> None:
        async with layer.bus("second", second) as bus:
            mailboxes["second"] = bus.mailbox

            async def claim() -> None:
                while claims := await bus.claim(["x"], 5):
                    for each in claims:
                        claimed.append(each.entry)
                        bus.post(mailboxes["first"], (KIND, "claimed", *each.entry))
                        bus.done(each)

            claiming = asyncio.create_task(claim())
            await asyncio.to_thread(finish.wait)
            bus.stop_claiming()
            await claiming
        await layer.close()

    async with layer.bus("first", first) as bus:
        mailboxes["first"] = bus.mailbox
        thread = threading.Thread(target=lambda: asyncio.run(serve()))
        thread.start()
        try:
            await until(lambda: "second" in mailboxes)
            for number in range(50):
                bus.post(mailboxes["second"], (KIND, number))
                bus.offer("x", (number,))
            await until(lambda: len(first.frames) == 50 and len(second.frames) == 50)
        finally:
            finish.set()
            await asyncio.to_thread(thread.join)
    assert second.frames == [(KIND, number) for number in range(50)]
    assert first.frames == [(KIND, "claimed", number) for number in range(50)]
    assert claimed == [(number,) for number in range(50)]


def background_threads() -> list[threading.Thread]:
    """Return the threads of all background loops."""
    return [thread for thread in threading.enumerate() if thread.name == "asgibus layer"]


@pytest.fixture
def connections(redis_url: str) -> Iterator[Callable[[], int]]:
    """Return a function that counts the connections that Redis has accepted so far."""
    with redis.Redis.from_url(redis_url, protocol=2) as admin:
        yield lambda: int(admin.info("stats")["total_connections_received"])


def test_a_channel_made_in_one_loop_is_read_in_another(new_layer: MakeLayer) -> None:
    layer = new_layer()

    async def answer() -> None:
        request = await layer.receive("requests")
        await layer.send(request["reply"], {"n": request["n"] + 1})

    reply = async_to_sync(layer.new_channel)("replies")
    for number in range(5):
        async_to_sync(layer.send)("requests", {"n": number, "reply": reply})
        asyncio.run(answer())
        assert async_to_sync(layer.receive)(reply) == {"n": number + 1}
    async_to_sync(layer.group_add)("group", reply)
    async_to_sync(layer.group_send)("group", {"n": 100})
    assert asyncio.run(layer.receive(reply)) == {"n": 100}
    async_to_sync(layer.group_discard)("group", reply)
    async_to_sync(layer.close)()
    wait_until(lambda: not background_threads())


def test_waiting_readers_get_messages_from_another_thread(new_layer: MakeLayer) -> None:
    layer = new_layer(capacity=1000)
    name = async_to_sync(layer.new_channel)()
    received: list[int] = []

    async def read() -> None:
        async with asyncio.timeout(20):
            received.extend([(await layer.receive(name))["n"] for _ in range(50)])

    threads = [threading.Thread(target=lambda: asyncio.run(read())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for number in range(200):
        async_to_sync(layer.send)(name, {"n": number})
    for thread in threads:
        thread.join()
    assert sorted(received) == list(range(200))
    async_to_sync(layer.close)()


def test_cancelled_reads_in_another_loop_lose_no_message(new_layer: MakeLayer) -> None:
    layer = new_layer(capacity=1000)
    name = async_to_sync(layer.new_channel)()
    received: list[int] = []

    async def read() -> None:
        async with asyncio.timeout(20):
            while len(received) < 200:
                with contextlib.suppress(TimeoutError):
                    received.append((await asyncio.wait_for(layer.receive(name), 0.002))["n"])

    async def send() -> None:
        for number in range(200):
            await layer.send(name, {"n": number})
            if number % 10 == 0:
                await asyncio.sleep(0.003)

    sending = threading.Thread(target=lambda: asyncio.run(send()))
    sending.start()
    asyncio.run(read())
    sending.join()
    assert received == list(range(200))
    async_to_sync(layer.close)()


def test_a_reader_of_an_ended_loop_blocks_no_other_reader(new_layer: MakeLayer) -> None:
    layer = new_layer()
    name = async_to_sync(layer.new_channel)()
    loop = asyncio.new_event_loop()
    waiting = loop.create_task(layer.receive(name))
    loop.run_until_complete(asyncio.sleep(0.05))  # until the call waits
    waiting._log_destroy_pending = False  # type: ignore[attr-defined]  # left pending on purpose
    loop.close()

    async def read() -> Any:
        reading = asyncio.create_task(layer.receive(name))
        await asyncio.sleep(0)
        await layer.send(name, {"n": 1})
        return await asyncio.wait_for(reading, 20)

    assert asyncio.run(read()) == {"n": 1}
    async_to_sync(layer.close)()


def test_closing_in_one_loop_keeps_the_channels_of_another(new_layer: MakeLayer) -> None:
    layer = new_layer()

    async def serve() -> Any:
        name = await layer.new_channel()
        await asyncio.to_thread(async_to_sync(layer.close))
        await layer.send(name, {"n": 1})
        received = await asyncio.wait_for(layer.receive(name), 20)
        await layer.close()
        return received

    assert asyncio.run(serve()) == {"n": 1}
    wait_until(lambda: not background_threads())


def test_channels_outlive_close_pools(new_layer: MakeLayer) -> None:
    """Make a layer as users of channels_redis do, whose connections cannot be used in another loop."""
    layer = new_layer()
    name = async_to_sync(layer.new_channel)()

    async def send() -> None:
        await layer.group_add("group", name)
        await layer.group_send("group", {"n": 1})
        await layer.close_pools()

    async def receive() -> Any:
        received = await asyncio.wait_for(layer.receive(name), 20)
        await layer.close_pools()
        return received

    async_to_sync(send)()
    async_to_sync(send)()
    assert [async_to_sync(receive)() for _ in range(2)] == [{"n": 1}, {"n": 1}]
    async_to_sync(layer.close)()
    wait_until(lambda: not background_threads())


@pytest.mark.redis
@pytest.mark.anyio
async def test_prefixes_and_loops_share_one_mailbox(redis_url: str, connections: Callable[[], int]) -> None:
    layer = RedisChannelLayer(redis_url)
    names = [await layer.new_channel("first")]
    before = await asyncio.to_thread(connections)
    names += [await layer.new_channel(f"prefix-{number}") for number in range(200)]
    names += [await asyncio.to_thread(async_to_sync(layer.new_channel), "thread") for _ in range(3)]
    assert await asyncio.to_thread(connections) == before
    for name in names:
        await layer.send(name, {"to": name})
    for name in reversed(names):
        assert await layer.receive(name) == {"to": name}
    await layer.close()


@pytest.mark.redis
def test_a_thousand_loops_use_one_connection(redis_url: str, connections: Callable[[], int]) -> None:
    layer = RedisChannelLayer(redis_url, capacity=1000)
    before = connections()
    for number in range(1000):
        async_to_sync(layer.send)("ordinary", {"n": number})
    assert connections() - before == 1
    assert async_to_sync(layer.channel_statistics)("ordinary")["messages_pending"] == 1000
    assert connections() - before == 1
    async_to_sync(layer.close)()
    wait_until(lambda: not background_threads())


@pytest.mark.redis
def test_a_program_that_ends_without_close_prints_nothing(redis_url: str) -> None:
    program = (
        "import asyncio, logging\n"
        "from asgibus.layers import RedisChannelLayer\n"
        # Debug mode warns of slow steps, which a busy machine has.
        "logging.getLogger('asyncio').addFilter(lambda record: 'Executing' not in record.getMessage())\n"
        f"layer = RedisChannelLayer({redis_url!r})\n"
        "async def main():\n"
        "    await layer.send('a', {})\n"
        "    await layer.group_add('g', await layer.new_channel())\n"
        "    await layer.group_send('g', {})\n"
        "    asyncio.create_task(layer.receive('b'))\n"
        "    await asyncio.sleep(0)\n"
        "for _ in range(2):\n"
        "    asyncio.run(main())\n"
        "print('done')\n"
    )
    result = subprocess.run(
        [sys.executable, "-X", "dev", "-c", program], check=False, capture_output=True, text=True, timeout=30
    )
    assert (result.stdout, result.stderr, result.returncode) == ("done\n", "", 0)


@pytest.mark.redis
def test_closing_a_loop_with_pending_tasks_prints_nothing(redis_url: str) -> None:
    program = (
        "import asyncio, gc, logging\n"
        "from asgibus.layers import RedisChannelLayer\n"
        "logging.basicConfig()\n"
        f"layer = RedisChannelLayer({redis_url!r})\n"
        "async def main():\n"
        "    local = await layer.new_channel()\n"
        "    await layer.send('a', {})\n"
        "    await layer.receive('a')\n"
        f"    await asyncio.sleep({YOUNG_SECONDS + 0.1})\n"  # so that the loop gets connections of its own
        "    await layer.group_add('g', local)\n"
        "    await layer.group_send('g', {})\n"
        "    await layer.receive(local)\n"
        "loop = asyncio.new_event_loop()\n"
        "loop.run_until_complete(main())\n"
        "loop.close()\n"
        "del loop\n"
        "gc.collect()\n"
        "print('done')\n"
    )
    result = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True, timeout=30)
    assert (result.stdout, result.stderr, result.returncode) == ("done\n", "", 0)
    with redis.Redis.from_url(redis_url, protocol=2) as admin:
        assert not [key for key in admin.keys("asgibus:*") if b"counts" not in key], "the lease was given back"


@pytest.mark.redis
def test_a_layer_may_be_collected_in_its_background_thread(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    unraisable: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", unraisable.append)
    others = threading.enumerate()
    layer = RedisChannelLayer(redis_url)
    async_to_sync(layer.send)("ordinary", {})
    (thread,) = [thread for thread in threading.enumerate() if thread.name == "asgibus layer" and thread not in others]
    assert layer.background_loop._thread is not None
    loop = layer.background_loop._thread.loop
    layer.cycle = layer  # type: ignore[attr-defined]
    del layer

    async def collect() -> None:
        gc.collect()

    asyncio.run_coroutine_threadsafe(collect(), loop).result(20)
    thread.join(20)
    assert not thread.is_alive()
    assert unraisable == []


def test_a_forked_process_starts_a_background_thread(redis_url: str) -> None:
    program = (
        "import os, sys\n"
        "from asgiref.sync import async_to_sync\n"
        "from asgibus.layers import RedisChannelLayer\n"
        f"layer = RedisChannelLayer({redis_url!r})\n"
        "async_to_sync(layer.send)('forked', {'n': 1})\n"
        "child = os.fork()\n"
        "async_to_sync(layer.send)('forked', {'n': 2})\n"
        "if child:\n"
        "    assert os.waitpid(child, 0)[1] == 0\n"
        "    print([async_to_sync(layer.receive)('forked')['n'] for _ in range(3)])\n"
    )
    result = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True, timeout=30)
    assert (result.stdout, result.stderr) == ("[1, 2, 2]\n", "")


@pytest.mark.parametrize("lock", ["layer.background_loop._lock", "layer._shards[0]._lock"])
def test_a_fork_during_a_call_of_another_thread(redis_url: str, lock: str) -> None:
    program = (
        "import os\n"
        "from asgiref.sync import async_to_sync\n"
        "from asgibus.layers import RedisChannelLayer\n"
        f"layer = RedisChannelLayer({redis_url!r})\n"
        "async_to_sync(layer.send)('forked', {'n': 1})\n"
        f"with {lock}:\n"  # as during a call of another thread
        "    child = os.fork()\n"
        "    if not child:\n"
        "        async_to_sync(layer.send)('forked', {'n': 2})\n"
        "if child:\n"
        "    assert os.waitpid(child, 0)[1] == 0\n"
        "    print([async_to_sync(layer.receive)('forked')['n'] for _ in range(2)])\n"
    )
    result = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True, timeout=30)
    assert (result.stdout, result.stderr) == ("[1, 2]\n", "")


@pytest.mark.redis
def test_a_forked_process_gets_new_channels(redis_url: str) -> None:
    program = (
        "import os\n"
        "from asgiref.sync import async_to_sync\n"
        "from asgibus.layers import RedisChannelLayer\n"
        f"layer = RedisChannelLayer({redis_url!r})\n"
        "names = [async_to_sync(layer.new_channel)()]\n"
        "async_to_sync(layer.group_add)('group', names[0])\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    names.append(async_to_sync(layer.new_channel)())\n"
        "    try:\n"
        "        async_to_sync(layer.receive)(names[0])\n"
        "    except TypeError as error:\n"
        "        assert 'was made by another' in str(error)\n"
        "    async_to_sync(layer.group_add)('group', names[1])\n"
        "    async_to_sync(layer.group_send)('group', {'n': 1})\n"
        "else:\n"
        "    assert os.waitpid(child, 0)[1] == 0\n"
        "print(async_to_sync(layer.receive)(names[-1]), flush=True)\n"
    )
    result = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True, timeout=30)
    assert (result.stdout, result.stderr) == ("{'n': 1}\n" * 2, "")


@pytest.mark.anyio
async def test_a_long_lived_loop_gets_connections(redis_url: str, connections: Callable[[], int]) -> None:
    layer = RedisChannelLayer(redis_url)
    before = await asyncio.to_thread(connections)
    end = asyncio.get_running_loop().time() + YOUNG_SECONDS + 0.1
    while asyncio.get_running_loop().time() < end:
        await layer.group_send("group", {})
    assert await asyncio.to_thread(connections) - before == 2
    assert len(background_threads()) == 1
    await layer.close()
    await until(lambda: not background_threads())
