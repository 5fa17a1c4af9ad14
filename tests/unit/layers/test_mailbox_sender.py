"""Senders to mailboxes and their state, over a pipeline whose replies the test defines."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from asgibus.layers.frames import LOCAL_MESSAGES
from asgibus.layers.redis import mailbox as mailbox_module
from asgibus.layers.redis.keys import Keys
from asgibus.layers.redis.mailbox import MAILBOX_BYTES, MailboxSender

pytestmark = pytest.mark.anyio

CHANNELS = "specific.p0123456789abcdef!"
SERVER = "interface.0123456789abcdef!"


class Redis:
    """A pipeline whose commands are answered at the next call, from the attributes of this object."""

    def __init__(self) -> None:
        self.replies: list[Callable[[], None]] = []
        self.full: list[bytes] = []
        self.size: object = 100
        self.commands: list[str] = []
        self.sent: list[tuple[Any, ...]] = []
        self.lives = True

    def write(self, args: tuple[Any, ...], on_reply: Callable[[Any], None], *, patient: bool) -> None:
        self.commands.append(args[0])
        self.replies.append(lambda: on_reply(self.full if args[0] == "SMEMBERS" else self.size))

    async def call(self, *args: str, until: float) -> None:
        self.commands.append(args[0])
        await asyncio.sleep(0)
        self.answer()

    def answer(self) -> None:
        replies, self.replies = self.replies, []
        for reply in replies:
            reply()

    async def send(self, mailbox: str, frame: tuple[Any, ...], until: float) -> bool:
        self.sent.append(frame)
        self.answer()
        return self.lives


@pytest.fixture
def store() -> Redis:
    return Redis()


@pytest.fixture
async def sender(store: Redis, monkeypatch: pytest.MonkeyPatch) -> MailboxSender:
    monkeypatch.setattr(mailbox_module, "REFUSE_SECONDS", 0.0)
    return MailboxSender(store, Keys("a"), store.send)  # type: ignore[arg-type]


async def send(sender: MailboxSender, *parts: str, mailbox: str = CHANNELS, capacity: int = 8) -> bool | None:
    return await sender.send(mailbox, parts, b"x", capacity, 0.0)


async def test_a_message_carries_its_delay_and_capacity(sender: MailboxSender, store: Redis) -> None:
    assert await sender.send(CHANNELS, ("1", "2"), b"x", 8, 0.0, 1.5)
    assert store.sent == [(LOCAL_MESSAGES, ("1", "2"), b"x", 1.5, 8)]
    store.lives = False
    assert await send(sender, "1") is None


async def test_the_state_is_read_at_intervals(sender: MailboxSender, store: Redis) -> None:
    for _ in range(9):
        assert await send(sender, "1", capacity=16)
    assert store.commands.count("SMEMBERS") == 3, "at first, and then for each quarter of the capacity"
    for _ in range(8):
        assert await send(sender, "1", mailbox=SERVER)
    assert store.commands.count("SMEMBERS") == 3, "reply channels are not full one by one"


async def test_a_full_channel_is_refused_until_there_is_room(sender: MailboxSender, store: Redis) -> None:
    store.full = [b"1"]
    assert await send(sender, "1"), "a channel of unknown state is refused"
    for _ in range(3):
        assert await send(sender, "1") is False
    assert await send(sender, "2")
    assert await send(sender, "1", "2"), "a message to one full channel of two is refused"
    assert len(store.sent) == 3
    store.full = []
    assert await send(sender, "1")


async def test_concurrent_senders_share_a_read_of_the_state(
    sender: MailboxSender, store: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mailbox_module, "REFUSE_SECONDS", 0.01)
    store.full = [b"1"]
    assert await send(sender, "1")
    store.full = []
    await asyncio.sleep(0.02)
    assert await asyncio.gather(*(send(sender, "1", capacity=100) for _ in range(3))) == [True, True, True]
    assert store.commands.count("SMEMBERS") == 2


async def test_an_unread_mailbox_is_refused(sender: MailboxSender, store: Redis) -> None:
    store.size = MAILBOX_BYTES + 1
    assert await send(sender, "1", "2")
    assert await send(sender, "1", "2") is False
    assert await sender.send_frame(SERVER, (1,), 0.0)
    assert await sender.send_frame(SERVER, (1,), 0.0) is False
    store.size = RuntimeError("NOPERM")
    assert await send(sender, "1", "2"), "a user without the permission to ask is refused"
    store.size = None
    assert await sender.send_frame(SERVER, (1,), 0.0)
