"""Streams in memory and in Redis behave alike: hypothesis generates calls, losses and clock steps for both.

The clock of the memory layer is set forward. The clock of Redis cannot be set, so the streams in Redis are made older
instead. All tested times differ from each step by more than the duration of an example.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import Coroutine
from dataclasses import replace
from itertools import count
from typing import Any, NamedTuple, TypeVar

import hypothesis.strategies as st
import pytest
import redis
from hypothesis import Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from asgibus.layers import InMemoryChannelLayer, RedisChannelLayer
from asgibus.layers.codec import pack
from asgibus.layers.errors import WriterFenced
from asgibus.layers.settings import StreamLimits
from asgibus.layers.streams import BEGINNING, Offset, Page, StreamState
from asgibus.layers.streams.identity import WriterIdentity
from asgibus.layers.streams.store import Batch, StreamStore

T = TypeVar("T")

STEP = 40.0
"""Seconds by which the clock is put forward."""
KEPT = 90.0
GRACE = 50.0
STREAMS = st.sampled_from(["a", "b"])
NAMES = st.sampled_from(["a", "a", "b", "group:g"])
WRITERS = st.sampled_from([-1, -1, -1, -2, -3])
TAILS = st.sampled_from([0, 1, 3])
LIMITS = st.builds(
    StreamLimits, st.sampled_from([1, 2, 3, 7, 5000]), st.sampled_from([1, 50, 200, 10**6]), st.just(KEPT)
)
PLACES = st.one_of(st.none(), st.tuples(st.integers(0, 3), st.integers(0, 12)))
"""The beginning, or the number of an epoch and the number of an entry."""

SETTINGS = settings(
    max_examples=settings.default.max_examples // 2, stateful_step_count=40, phases=(Phase.explicit, Phase.generate)
)
"""Without shrinking, which would take minutes."""

PREFIXES = (f"streams{number}" for number in count())


class Writer(NamedTuple):
    """A writer of one layer, and the batches that it has stored."""

    name: str
    identity: WriterIdentity
    last: int
    batches: list[Batch]


class Side:
    """One of the layers. What it returns has no time and no channel in it, so that both can be compared."""

    def __init__(self, store: StreamStore) -> None:
        self.store = store
        self.writers: list[Writer] = []
        self.epochs: defaultdict[str, list[int]] = defaultdict(list)

    async def begin(self, name: str, restart: bool, limits: StreamLimits, content_type: str) -> Any:
        channel = await self.store.messages.new_channel()
        identity = WriterIdentity(channel, limits, lambda: None, content_type=content_type)
        page = await self.store.begin(name, identity, restart=restart)
        self.writers.append(Writer(name, identity, page.last.number, []))
        return self._place(name, page.last), page.cancelled, identity.term

    async def append(self, index: int, count: int, size: int, tail: int) -> Any:
        name, identity, last, batches = self._writer(index)
        number = (batches[-1].last if batches else last) + 1
        batch = Batch(number, pack([[number + each, "x" * size] for each in range(count)]), count)
        cancelled = await self.store.append(name, identity, batch, _last(batches, tail))
        batches.append(batch)
        return cancelled, identity.kept_bytes

    async def append_again(self, index: int) -> Any:
        name, identity, _, batches = self._writer(index)
        return batches and await self.store.append(name, identity, batches[-1], batches[-3:-1])

    async def renew(self, index: int, tail: int) -> Any:
        name, identity, last, batches = self._writer(index)
        last = batches[-1].last if batches else last
        return await self.store.renew(name, identity, last, _last(batches, tail))

    async def finish(self, index: int, error: str, grace: float, tail: int) -> Any:
        name, identity, last, batches = self._writer(index)
        last = batches[-1].last if batches else last
        state = StreamState.FAILED if error else StreamState.ENDED
        await self.store.finish(name, identity, last, state, error, grace=grace, tail=_last(batches, tail))

    async def page(self, name: str, place: tuple[int, int] | None, limit: int) -> Any:
        after = BEGINNING
        if place is not None:
            epochs = self.epochs[name]
            after = Offset(epochs[place[0]] if place[0] < len(epochs) else 1, place[1])
        return self._page(name, await self.store.page(name, after, limit))

    async def keep(self, name: str, message_id: str, size: int, limits: StreamLimits) -> Any:
        is_new, offset = await self.store.keep(name, pack([[message_id, "x" * size]]), limits, message_id)
        return is_new, self._place(name, offset)

    async def cancel(self, name: str) -> bool:
        return await self.store.cancel(name)

    async def delete(self, name: str) -> bool:
        return await self.store.delete(name)

    def _writer(self, index: int) -> Writer:
        return self.writers[max(index, -len(self.writers))]

    def _page(self, name: str, page: Page) -> Any:
        items = [(self._place(name, offset), item) for offset, item in page.items]
        first, last, after = (self._place(name, offset) for offset in (page.first, page.last, page.next))
        left = None if page.left is None else round(page.left / 10)
        return (
            items,
            first,
            last,
            after,
            left,
            replace(page, items=(), first=BEGINNING, last=BEGINNING, next=BEGINNING, left=None),
        )

    def _place(self, name: str, offset: Offset) -> tuple[int, int]:
        epochs = self.epochs[name]
        if offset.epoch > 1 and offset.epoch not in epochs:
            epochs.append(offset.epoch)
        return epochs.index(offset.epoch) if offset.epoch > 1 else -1, offset.number


def _last(batches: list[Batch], count: int) -> list[Batch]:
    return batches[-count:] if count else []


def age(admin: "redis.Redis[bytes]", prefix: str, seconds: float) -> None:
    """Make all streams under the prefix look older by this many seconds."""
    milliseconds = round(seconds * 1000)
    for key in admin.scan_iter(f"{prefix}:stream*"):
        for field in ("fails", "gone") if admin.type(key) == b"hash" else ():
            if (at := admin.hget(key, field)) is not None:
                admin.hset(key, field, str(max(0, int(at) - milliseconds)))
        admin.pexpire(key, max(0, admin.pttl(key) - milliseconds))


class Streams(RuleBasedStateMachine):
    """Two layers that get the same calls."""

    url = ""

    @initialize()
    def begin_both(self) -> None:
        self.runner = asyncio.Runner()
        self.admin = redis.Redis.from_url(self.url, protocol=2)
        self.prefix = next(PREFIXES)
        self.offset = 0.0
        self.model = InMemoryChannelLayer(clock=lambda: time.time() + self.offset)
        self.layer = RedisChannelLayer(self.url, prefix=self.prefix)
        self.sides = Side(self.model._streams), Side(self.layer._streams)

    def teardown(self) -> None:
        if hasattr(self, "runner"):
            self.run(self.layer.flush())
            self.run(self.layer.close())
            self.runner.close()
            self.admin.close()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(coroutine)

    def call(self, method: str, *arguments: Any) -> None:
        """Assert that a call has the same result on both layers."""

        async def outcome(side: Side) -> Any:
            try:
                return await getattr(side, method)(*arguments)
            except WriterFenced as error:
                return error.why

        expected, found = (self.run(outcome(side)) for side in self.sides)
        assert found == expected

    @property
    def has_writers(self) -> bool:
        return bool(self.sides[0].writers)

    @rule(name=STREAMS, restart=st.booleans(), limits=LIMITS, content_type=st.sampled_from(["", "", "text/plain"]))
    def begin(self, name: str, restart: bool, limits: StreamLimits, content_type: str) -> None:
        self.call("begin", name, restart, limits, content_type)

    @rule(writer=WRITERS, count=st.sampled_from([1, 1, 2, 5, 40]), size=st.sampled_from([0, 10, 100]), tail=TAILS)
    @precondition(lambda self: self.has_writers)
    def append(self, writer: int, count: int, size: int, tail: int) -> None:
        self.call("append", writer, count, size, tail)

    @rule(writer=WRITERS)
    @precondition(lambda self: self.has_writers)
    def append_again(self, writer: int) -> None:
        self.call("append_again", writer)

    @rule(writer=WRITERS, tail=TAILS)
    @precondition(lambda self: self.has_writers)
    def renew(self, writer: int, tail: int) -> None:
        self.call("renew", writer, tail)

    @rule(writer=WRITERS, ends=st.sampled_from([("", 0.0), ("Oops", 0.0), ("Oops", GRACE)]), tail=TAILS)
    @precondition(lambda self: self.has_writers)
    def finish(self, writer: int, ends: tuple[str, float], tail: int) -> None:
        self.call("finish", writer, *ends, tail)

    @rule(name=NAMES, place=PLACES, limit=st.sampled_from([0, 1, 3, 500]))
    def page(self, name: str, place: tuple[int, int] | None, limit: int) -> None:
        self.call("page", name, place, limit)

    @rule(number=st.integers(0, 9), size=st.sampled_from([0, 60]), limits=LIMITS)
    def keep(self, number: int, size: int, limits: StreamLimits) -> None:
        self.call("keep", "group:g", f"id.{number}", size, limits)

    @rule(name=NAMES)
    def cancel(self, name: str) -> None:
        self.call("cancel", name)

    @rule(name=NAMES)
    def delete(self, name: str) -> None:
        self.call("delete", name)

    @rule()
    def step(self) -> None:
        self.offset += STEP
        age(self.admin, self.prefix, STEP)

    @rule()
    def flush(self) -> None:
        for layer in (self.model, self.layer):
            self.run(layer.flush())
        time.sleep(0.002)  # the epochs of both are times in ms


@pytest.mark.redis
def test_streams_in_memory_and_in_redis_agree(redis_url: str) -> None:
    class Both(Streams):
        url = redis_url

    run_state_machine_as_test(Both, settings=SETTINGS)
