"""What has arrived for process-local channels, by a clock that the test turns."""

import asyncio
from collections import Counter
from collections.abc import Mapping

import pytest

from asgibus.layers.codec import pack_message
from asgibus.layers.redis import inbox as inbox_module
from asgibus.layers.redis.inbox import Inbox
from asgibus.layers.settings import LayerSettings
from support.bus import until

pytestmark = pytest.mark.anyio


class Store:
    """A store's clock, and what it is told."""

    mailbox = "a.1!"

    def __init__(self) -> None:
        self.now = 1000.0
        self.told: Counter[str] = Counter()

    def time(self) -> float:
        return self.now

    def received(self, parts: Mapping[str, int]) -> None:
        self.told.update(parts)


async def test_what_went_through_a_channel_is_forgotten_when_nobody_uses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inbox_module, "FORGET_SECONDS", 0.02)
    inbox = Inbox()
    inbox.on_bus(Store(), LayerSettings())
    for part in ("read", "unread", "waited for"):
        inbox.deliver([part], pack_message({}), 1000.0)
    for part in ("read", "waited for"):
        await inbox.receive(part)
    waiting = asyncio.create_task(inbox.receive("waited for"))
    assert inbox.standing("read") == (1, 0, 0.0)
    await until(lambda: inbox.standing("read") == (0, 0, 0.0))
    assert inbox.standing("unread")[:2] == (1, 1)
    assert inbox.standing("waited for")[:2] == (1, 0)
    waiting.cancel()
    await until(lambda: inbox.standing("waited for")[:2] == (0, 0))
    inbox.close()


async def test_what_has_expired_is_not_received_although_it_was_not_swept_yet() -> None:
    store, inbox = Store(), Inbox()
    inbox.on_bus(store, LayerSettings())
    inbox.deliver(["1"], pack_message({"n": "old"}), store.now)
    store.now += 60
    inbox.deliver(["1"], pack_message({"n": "new"}), store.now - 1)
    inbox.deliver(["1"], pack_message({"n": "late"}), store.now - 60)
    assert await asyncio.wait_for(inbox.receive("1"), 1) == {"n": "new"}
    inbox.tell()
    assert store.told == {"1": 3}
    inbox.close()


async def test_what_a_reader_that_gave_up_was_handed_comes_before_what_came_behind_it() -> None:
    store, inbox = Store(), Inbox()
    inbox.on_bus(store, LayerSettings())
    first = asyncio.create_task(inbox.receive("1"))
    await asyncio.sleep(0)  # in which it begins to wait
    for number in range(3):
        inbox.deliver(["1"], pack_message({"n": number}), store.now)
    first.cancel()
    await asyncio.wait([first])
    assert [(await inbox.receive("1"))["n"] for _ in range(3)] == [0, 1, 2]
    inbox.close()
