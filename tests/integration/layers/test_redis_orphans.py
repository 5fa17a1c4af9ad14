"""Orphans, with a fault or a further event while another process takes them over."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import redis

from asgibus.layers import Bus, RedisChannelLayer
from asgibus.layers.codec import pack
from asgibus.layers.frames import DEAD
from asgibus.layers.redis.heartbeat import Reaper
from asgibus.layers.redis.pipeline import PAYLOAD_VERSION
from support.bus import Recorder, until

pytestmark = pytest.mark.anyio

PROCESSES = "asgibus:processes"
SHARED = "asgibus:shared:x"


@pytest.fixture
async def layer(redis_url: str) -> AsyncIterator[RedisChannelLayer]:
    layer = RedisChannelLayer(redis_url)
    yield layer
    await layer.close()


def add_holder(admin: "redis.Redis[bytes]", mailbox: str, entry: Any) -> None:
    """Add a process that has claimed this entry, with a lease that only `end_lease` ends."""
    admin.zadd(PROCESSES, {mailbox: 9e12, "beaten": 9e12})  # `beaten` says that the store is not new: no grace time
    if not admin.exists(SHARED):
        admin.xgroup_create(SHARED, "workers", "0", mkstream=True)
    admin.xadd(SHARED, {"b": pack(entry)})
    admin.xreadgroup("workers", mailbox, {SHARED: ">"}, count=1)


def end_lease(admin: "redis.Redis[bytes]", mailbox: str) -> None:
    """End the lease of such a process."""
    seconds, _ = admin.time()
    admin.zadd(PROCESSES, {mailbox: seconds * 1000 - 1})


def searches(admin: "redis.Redis[bytes]") -> int:
    """Return how often claimants have looked for claims of others."""
    return int(admin.info("commandstats").get("cmdstat_xinfo|consumers", {"calls": 0})["calls"])


async def stop(bus: Bus, task: "asyncio.Task[Any]") -> None:
    bus.stop_claiming()
    assert await asyncio.wait_for(task, 30) == []


async def test_orphans_of_a_death_during_a_heartbeat_are_claimed(
    layer: RedisChannelLayer, admin: "redis.Redis[bytes]", monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next heartbeat finds the claims of the second dead worker, although that heartbeat reports no new death."""
    handler = Recorder()
    add_holder(admin, "w.first!", ("first",))
    add_holder(admin, "w.second!", ("second",))
    async with layer.bus("w", handler) as worker:
        task = asyncio.create_task(worker.claim(["x"], 10))
        reap = Reaper.reap
        reported = asyncio.Event()

        async def slow(self: Reaper, beat: Any, now: int, *, log: bool = True) -> bool:
            """Report the second death during a heartbeat that has found the first."""
            died = await reap(self, beat, now, log=log)
            if "w.first!" in beat.ended and not reported.is_set():
                reported.set()
                end_lease(admin, "w.second!")
                admin.xadd(
                    f"asgibus:mailbox:{worker.mailbox}",
                    {"b": pack((PAYLOAD_VERSION, "", [(DEAD, "w.second!", True)]))},
                )
                await until(lambda: "w.second!" in handler.dead)
            return died

        monkeypatch.setattr(Reaper, "reap", slow)
        end_lease(admin, "w.first!")
        await until(lambda: len(handler.orphans) == 2, 5)
        assert {claim.entry for claim in handler.orphans} == {("first",), ("second",)}
        for claim in handler.orphans:
            worker.done(claim)
        await stop(worker, task)


async def test_orphans_are_read_again_at_the_next_heartbeat(
    layer: RedisChannelLayer, admin: "redis.Redis[bytes]", caplog: pytest.LogCaptureFixture
) -> None:
    """Orphans that are pending under the second name of the claimant are read at the next heartbeat."""
    handler = Recorder()
    add_holder(admin, "w.first!", ("first",))
    async with layer.bus("w", handler) as worker:
        task = asyncio.create_task(worker.claim(["x"], 10))
        before = searches(admin)
        await until(lambda: searches(admin) > before)  # the search for earlier orphans
        # Reading the entries of the second name fails now, as during a short fault of Redis.
        admin.acl_setuser("default", enabled=True, commands=["-xreadgroup"], reset=False)
        try:
            end_lease(admin, "w.first!")
            await until(lambda: "cannot be kept up" in caplog.text)
            assert admin.xpending_range(SHARED, "workers", "-", "+", 9, f"{worker.mailbox}orphans")
            assert handler.orphans == []
        finally:
            admin.acl_setuser("default", enabled=True, commands=["+xreadgroup"], reset=False)
        await until(lambda: handler.orphans, 5)
        assert handler.orphans[0].entry == ("first",)
        worker.done(handler.orphans[0])
        await stop(worker, task)
