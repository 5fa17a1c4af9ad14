"""The messages of process-local channels, with a clock of the test."""

import asyncio
import logging
from collections import Counter
from collections.abc import Collection, Iterator

import pytest

from asgibus.layers.codec import pack_message
from asgibus.layers.over_capacity import OverCapacity
from asgibus.layers.redis.local import inbox as inbox_module
from asgibus.layers.redis.local.inbox import Inbox
from support.bus import until

pytestmark = pytest.mark.anyio


class Store:
    """The clock of a store, and its published full channels."""

    mailbox = "a.1!"

    def __init__(self) -> None:
        self.now = 1000.0
        self.full: set[str] = set()
        self.published = 0

    def time(self) -> float:
        return self.now

    def abandoned(self, parts: Collection[str]) -> None:
        raise NotImplementedError

    def publish_full(self, full: Collection[str], others: Collection[str]) -> None:
        self.published += 1
        self.full = self.full - set(others) | set(full)


class TestedInbox(Inbox):
    """An inbox that delivers numbers, to channels that hold three messages."""

    __test__ = False

    def __init__(self, store: Store) -> None:
        self.store = store
        self.counts: Counter[str] = Counter()
        super().__init__(60.0, OverCapacity(self.counts))
        self.on_bus(store)

    def put(self, *parts: str, n: object = None, delay: float = 0.0, age: float = 0.0) -> None:
        self.deliver(parts, pack_message({"n": n}), self.store.now - age, delay, 3)

    async def get(self, part: str) -> object:
        return (await asyncio.wait_for(self.receive(part), 5))["n"]

    def numbers(self, part: str) -> tuple[int, int, int]:
        """Return how many messages have arrived, are unread, and were dropped."""
        statistics = self.statistics(part)
        return statistics["messages_count"], statistics["messages_pending"], statistics["channel_full_count"]


@pytest.fixture
async def store() -> Store:
    return Store()


@pytest.fixture
async def inbox(store: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestedInbox]:
    monkeypatch.setattr(inbox_module, "FORGET_SECONDS", 0.02)
    inbox = TestedInbox(store)
    yield inbox
    inbox.close()


async def test_an_unused_channel_is_forgotten(inbox: TestedInbox) -> None:
    inbox.put("read", "unread", "waited for")
    for part in ("read", "waited for"):
        await inbox.get(part)
    waiting = asyncio.create_task(inbox.receive("waited for"))
    assert inbox.numbers("read") == (1, 0, 0)
    await until(lambda: inbox.numbers("read") == (0, 0, 0))
    assert inbox.numbers("unread") == (1, 1, 0)
    assert inbox.numbers("waited for") == (1, 0, 0)
    waiting.cancel()
    await until(lambda: inbox.numbers("waited for") == (0, 0, 0))


async def test_expired_messages_are_not_received_before_they_are_swept(inbox: TestedInbox, store: Store) -> None:
    inbox.put("1", n="old")
    store.now += 60
    inbox.put("1", n="new", age=1)
    inbox.put("1", n="late", age=60)
    assert await inbox.get("1") == "new"
    assert inbox.numbers("1") == (2, 0, 0)


async def test_a_clock_of_redis_set_back(inbox: TestedInbox, store: Store) -> None:
    """The ids of a stream continue from the later time when the clock of Redis goes back."""
    inbox.put("1", n="delayed", delay=0.01, age=-3600)
    assert await inbox.get("1") == "delayed"
    inbox.put("1", n="unread", age=-3600)
    store.now += 60
    assert inbox.numbers("1") == (2, 0, 0)


async def test_the_message_of_a_cancelled_reader_comes_before_later_ones(inbox: TestedInbox) -> None:
    first = asyncio.create_task(inbox.receive("1"))
    await asyncio.sleep(0)  # until the call waits
    for number in range(3):
        inbox.put("1", n=number)
    first.cancel()
    await asyncio.wait([first])
    assert [await inbox.get("1") for _ in range(3)] == [0, 1, 2]


async def test_a_channel_filled_by_a_cancelled_reader_is_published(inbox: TestedInbox, store: Store) -> None:
    reader = asyncio.create_task(inbox.receive("1"))
    await asyncio.sleep(0)  # until the call waits
    for number in range(3):
        inbox.put("1", n=number)
    assert not store.full
    reader.cancel()
    await asyncio.wait([reader])
    inbox.put("1", n=3)
    assert inbox.numbers("1") == (3, 3, 1)
    assert store.full == {"1"}


async def test_a_full_channel_drops_messages(
    inbox: TestedInbox, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="asgibus.layers"):
        for number in range(3):
            inbox.put("1", n=number)
        for _ in range(2):
            inbox.put("1", "2")
    assert inbox.numbers("1") == (3, 3, 2)
    assert inbox.numbers("2") == (2, 2, 0)
    assert inbox.counts["channel full"] == 2
    assert "1 of 2 channels over capacity in mailbox a.1!" in caplog.text
    assert [await inbox.get("1") for _ in range(3)] == [0, 1, 2]


async def test_full_channels_are_published_to_senders(inbox: TestedInbox, store: Store) -> None:
    for _ in range(3):
        assert not store.full
        inbox.put("1")
    assert store.full == {"1"}
    before = store.published
    for _ in range(100):
        inbox.put("1")
    assert store.published == before, "a full channel is published again for senders without the news"
    await inbox.get("1")
    await until(lambda: not store.full)
    inbox.put("1")
    assert store.full == {"1"}


async def test_full_channels_are_published_again_after_a_loss_in_redis(
    inbox: TestedInbox, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inbox_module, "REPUBLISH_SECONDS", 0.0)
    for _ in range(3):
        inbox.put("1")
    store.full.clear()
    inbox.put("1")
    assert store.full == {"1"}


async def test_expiry_and_clearing_make_room(inbox: TestedInbox, store: Store) -> None:
    for _ in range(3):
        inbox.put("1")
        inbox.put("2")
    assert store.full == {"1", "2"}
    store.now += 61
    inbox.put("1", n="young")
    assert await inbox.get("1") == "young"
    inbox.clear()
    assert not store.full
    assert inbox.numbers("2") == (0, 0, 0)


async def test_a_waiting_reader_gets_a_message_of_a_full_channel(inbox: TestedInbox) -> None:
    readers = [asyncio.create_task(inbox.receive("1")) for _ in range(5)]
    await asyncio.sleep(0)  # until the calls wait
    for number in range(5):
        inbox.put("1", n=number)
    assert [(await reader)["n"] for reader in readers] == list(range(5))


async def test_delayed_messages_count_for_the_capacity(inbox: TestedInbox, store: Store) -> None:
    inbox.put("1", n="late", delay=0.05)
    inbox.put("1", n=1)
    assert inbox.numbers("1") == (2, 2, 0)
    inbox.put("1", n=2, delay=60)
    inbox.put("1", n=3)
    assert inbox.numbers("1") == (3, 3, 1)
    assert store.full == {"1"}
    assert [await inbox.get("1") for _ in range(2)] == [1, "late"]
    assert inbox.numbers("1") == (3, 1, 1)
    await until(lambda: not store.full)
    inbox.clear()
    assert inbox.numbers("1") == (0, 0, 0)
