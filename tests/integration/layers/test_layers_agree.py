"""Layers in memory and in Redis behave alike: hypothesis generates calls, clock steps and cancels for both.

The memory layer is the model. Its clock is set forward. The clock of Redis cannot be set, so the data in Redis is made
older instead. All tested times differ from each step by more than the duration of an example.
"""

import asyncio
import time
from collections.abc import Coroutine
from itertools import count
from typing import Any, TypeVar

import hypothesis.strategies as st
import pytest
import redis
from hypothesis import Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from asgibus.layers import ChannelFull, ChannelLayer, InMemoryChannelLayer, RedisChannelLayer

T = TypeVar("T")

STEP = 40.0
"""Seconds by which the clock is put forward."""
OPTIONS: dict[str, Any] = {"expiry": 90, "group_expiry": 150, "capacity": 3, "channel_capacity": {"wide.*": 5}}
DELAYS = st.sampled_from([0, 0, 0, 20, 60])
CHANNELS = ("a", "wide.b")
GROUPS = ("g", "h")
SOON = 5.0
"""Seconds within which the Redis layer has to follow the model."""
SILENCE = 0.03
"""Seconds for which a reader waits that must not get a message."""

SETTINGS = settings(
    max_examples=settings.default.max_examples // 6, stateful_step_count=30, phases=(Phase.explicit, Phase.generate)
)
"""Without shrinking, which would take minutes."""

PREFIXES = (f"agree{number}" for number in count())


def age(admin: "redis.Redis[bytes]", prefix: str, seconds: float) -> None:
    """Make all data under the prefix look older by this many seconds."""
    milliseconds = round(seconds * 1000)
    for key in admin.scan_iter(f"{prefix}:*"):
        kind, lifetime = admin.type(key), admin.pttl(key)
        if kind == b"stream":
            entries = admin.xrange(key)
            admin.delete(key)
            for entry_id, fields in entries:
                created, _, number = entry_id.partition(b"-")
                admin.xadd(key, fields, id=f"{int(created) - milliseconds}-{number.decode()}")
        elif kind == b"list":
            items = [item.split(b":", 1) if item else (b"", b"") for item in admin.lrange(key, 0, -1)]
            admin.delete(key)
            for stamp, rest in items:
                admin.rpush(key, b"%d:%b" % (int(stamp) - milliseconds, rest) if stamp else b"")
        elif kind == b"zset":
            for member in admin.zrange(key, 0, -1):
                admin.zincrby(key, -milliseconds, member)
        if lifetime >= 0:
            admin.pexpire(key, max(0, lifetime - milliseconds))


class Layers(RuleBasedStateMachine):
    """Two layers that get the same calls."""

    url = ""

    @initialize()
    def begin(self) -> None:
        self.runner = asyncio.Runner()
        self.admin = redis.Redis.from_url(self.url, protocol=2)
        self.prefix = next(PREFIXES)
        self.offset = 0.0
        self.number = 0
        self.model: ChannelLayer = InMemoryChannelLayer(clock=lambda: time.time() + self.offset, **OPTIONS)
        self.store: ChannelLayer = RedisChannelLayer(self.url, prefix=self.prefix, **OPTIONS)
        self.locals: list[tuple[str, str]] = []
        self.waiting: dict[str, tuple[asyncio.Task[Any], asyncio.Task[Any]]] = {}

    def teardown(self) -> None:
        if hasattr(self, "runner"):
            self.run(self._end())
            self.runner.close()
            self.admin.close()

    async def _end(self) -> None:
        tasks = [task for pair in self.waiting.values() for task in pair]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.store.flush()
        await self.store.close()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(coroutine)

    def pair(self, data: st.DataObject) -> tuple[str, str]:
        """Pick a channel, by its names in both layers."""
        return data.draw(st.sampled_from([*((name, name) for name in CHANNELS), *self.locals]))

    @rule()
    @precondition(lambda self: len(self.locals) < 2)
    def new_channel(self) -> None:
        async def make() -> tuple[str, str]:
            return await self.model.new_channel(), await self.store.new_channel()

        self.locals.append(self.run(make()))

    @rule(data=st.data(), delay=DELAYS)
    def send(self, data: st.DataObject, delay: int) -> None:
        names = self.pair(data)
        if names in self.locals:
            delay = 0  # the memory layer uses the clock of the event loop
        self.number += 1
        message = {"n": self.number, "bytes": b"\xff"}

        async def send(layer: ChannelLayer, name: str) -> str:
            try:
                await layer.send(name, message, delay=delay)
            except ChannelFull:
                return "full"
            return "sent"

        expected = self.run(send(self.model, names[0]))
        outcome = self.run(send(self.store, names[1]))
        if "!" not in names[1] or expected != "full":  # a full local channel may be noticed late
            assert outcome == expected
        self.settle()

    @rule(data=st.data())
    def receive(self, data: st.DataObject) -> None:
        names = self.pair(data)
        if names[0] in self.waiting:
            return

        async def receive(layer: ChannelLayer, name: str, seconds: float) -> Any:
            try:
                async with asyncio.timeout(seconds):
                    return await layer.receive(name)
            except TimeoutError:
                return None

        expected = self.run(receive(self.model, names[0], SILENCE))
        assert self.run(receive(self.store, names[1], SOON if expected else SILENCE)) == expected

    @rule(data=st.data())
    def wait(self, data: st.DataObject) -> None:
        """Start a reader on both layers."""
        names = self.pair(data)

        async def begin() -> None:
            tasks = asyncio.create_task(self.model.receive(names[0])), asyncio.create_task(self.store.receive(names[1]))
            self.waiting[names[0]] = tasks
            await asyncio.sleep(SILENCE)

        if names[0] not in self.waiting:
            self.run(begin())
            self.settle()

    @rule(data=st.data())
    @precondition(lambda self: self.waiting)
    def cancel(self, data: st.DataObject) -> None:
        tasks = self.waiting.pop(data.draw(st.sampled_from(sorted(self.waiting))))

        async def cancel() -> None:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

        self.run(cancel())
        assert all(task.cancelled() for task in tasks)

    def settle(self) -> None:
        """Assert that corresponding readers of both layers both wait, or have received the same message."""

        async def settle() -> None:
            await asyncio.sleep(SILENCE)
            for name, (of_model, of_redis) in list(self.waiting.items()):
                if of_model.done():
                    del self.waiting[name]
                    assert await asyncio.wait_for(of_redis, SOON) == of_model.result()
                else:
                    assert not of_redis.done(), of_redis

        self.run(settle())

    @rule(group=st.sampled_from(GROUPS), data=st.data(), joins=st.booleans())
    def change_group(self, group: str, data: st.DataObject, joins: bool) -> None:
        for layer, name in zip((self.model, self.store), self.pair(data), strict=True):
            self.run((layer.group_add if joins else layer.group_discard)(group, name))

    @rule(group=st.sampled_from(GROUPS))
    def group_send(self, group: str) -> None:
        self.number += 1
        for layer in (self.model, self.store):
            self.run(layer.group_send(group, {"n": self.number}))
        self.settle()

    @rule()
    @precondition(lambda self: not self.locals and not self.waiting)
    def step(self) -> None:
        """Step the clock, except with process-local channels: their mailbox would expire before its owner renews it."""
        self.offset += STEP
        age(self.admin, self.prefix, STEP)

    @rule(data=st.data())
    def statistics(self, data: st.DataObject) -> None:
        names = self.pair(data)
        expected = self.run(self.model.channel_statistics(names[0]))
        actual = self.run(self.store.channel_statistics(names[1]))
        counts = ["messages_count", "messages_pending"]
        if "!" not in names[1]:  # the owner of a local channel does not count rejected messages
            counts.append("channel_full_count")
        for name in counts:
            assert actual[name] == expected[name], (name, actual, expected)
        assert abs(actual["messages_max_age"] - expected["messages_max_age"]) < SOON

    @rule()
    def flush(self) -> None:
        for layer in (self.model, self.store):
            self.run(layer.flush())


@pytest.mark.redis
def test_memory_and_redis_layers_agree(redis_url: str) -> None:
    class Both(Layers):
        url = redis_url

    run_state_machine_as_test(Both, settings=SETTINGS)
