"""Asking the process of a mailbox how its process-local channels stand: it alone knows what has arrived there.

It also says to Redis then what was received, which it does late by itself; so a sender that finds a channel full asks,
and tries once more.
"""

from __future__ import annotations

import asyncio
import secrets
from typing import NamedTuple

from asgibus.layers.errors import LayerUnavailable
from asgibus.layers.frames import STATS_QUERY
from asgibus.layers.redis.channels import ChannelReader
from asgibus.layers.redis.codec import Entries
from asgibus.layers.redis.kept import Sent
from asgibus.layers.redis.keys import Keys

ANSWER_MS = 10_000  # how long an answer is there for whoever has asked, who may have given up
TOLD_SECONDS = 1.0  # for an answer that a sender waits for: a process that takes longer hangs
SILENT_SECONDS = 5.0  # until senders ask a process again that did not answer


class Standing(NamedTuple):
    """How a channel stands: messages that were sent there, those that are unread, the age of the oldest in seconds."""

    sent: int = 0
    unread: int = 0
    age: float = 0.0


class _Mailbox:
    """Asks of senders, one at a time: how many have begun, which one has ended last, and whether that was answered."""

    __slots__ = ("answered", "begun", "ended", "lock", "users")

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.users = 0
        self.begun = 0
        self.ended = 0
        self.answered = False


class Asking:
    """What one event loop asks. All methods are called from that loop."""

    def __init__(self, keys: Keys, entries: Entries, sent: Sent, reader: ChannelReader) -> None:
        self._loop = asyncio.get_running_loop()
        self._keys = keys
        self._entries = entries
        self._sent = sent
        self._reader = reader
        self._mailboxes: dict[str, _Mailbox] = {}
        self._silent: dict[str, float] = {}  # until when they are not asked

    async def ask(self, mailbox: str, part: str, until: float) -> Standing:
        """How a channel stands behind all that was sent there before; nothing is known of a process that is gone.

        Raises LayerUnavailable, also if there is no answer at the time `until` of the event loop's clock.
        """
        key = self._keys.answer(secrets.token_hex(8))
        if not await self._sent.send(mailbox, (STATS_QUERY, part, key), until):
            return Standing()
        answer = await self._reader.answer(key, until)
        if answer is None:
            raise LayerUnavailable(f"the process of '{mailbox}{part}' does not say how the channel stands")
        try:
            return Standing(*self._entries.unpack(key, answer))
        except (ValueError, TypeError) as error:  # TypeError: it holds no three things
            self._entries.refused(f"answer of {mailbox}", part, error)
            raise LayerUnavailable(f"how the channel '{mailbox}{part}' stands cannot be read: {error}") from error

    async def told(self, mailbox: str, part: str, until: float) -> bool:
        """Have it say to Redis what was received so far from its channels; False if it does not answer.

        Any number of callers ask once: the next time, if somebody is asking already. Raises LayerUnavailable.
        """
        if self._silent.get(mailbox, 0.0) > self._loop.time():
            return False
        each = self._mailboxes.setdefault(mailbox, _Mailbox())
        wanted = each.begun + 1
        each.users += 1
        try:
            async with each.lock:
                if each.ended < wanted:
                    each.begun += 1
                    each.answered = await self._is_told(mailbox, part, until)
                    each.ended = each.begun
                return each.answered
        finally:
            each.users -= 1
            if not each.users:
                self._mailboxes.pop(mailbox, None)

    async def _is_told(self, mailbox: str, part: str, until: float) -> bool:
        now = self._loop.time()
        try:
            await self.ask(mailbox, part, min(until, now + TOLD_SECONDS))
        except LayerUnavailable:
            if now + TOLD_SECONDS > until:
                raise
            self._silent = {each: end for each, end in self._silent.items() if end > now}
            self._silent[mailbox] = self._loop.time() + SILENT_SECONDS
            return False
        return True
