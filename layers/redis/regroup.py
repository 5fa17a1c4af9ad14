"""Wait for processes that are on the bus and not in their places: after Redis lost data, or lost a mailbox alone."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from asgibus.layers.errors import LayerUnavailable
from asgibus.layers.redis import scripts
from asgibus.layers.redis.epoch import Epoch, find_epoch
from asgibus.layers.redis.heartbeat import BEAT_SECONDS, SILENT_SECONDS
from asgibus.layers.redis.keys import Keys
from asgibus.layers.redis.pipeline import Refused, Writer

T = TypeVar("T")

LOOK_SECONDS = 0.5  # that a look at Redis may take behind a wait: without them it would end in its time limit
MISSING_SECONDS = BEAT_SECONDS + 0.5  # for a living process to make its mailbox anew: it notices at its next beat
LOOK_AGAIN_SECONDS = 0.1  # until it is looked again whether a mailbox is back


class Regroup:
    """The waits of one event loop at one store."""

    def __init__(self, writer: Writer, keys: Keys, epoch: Epoch) -> None:
        self._loop = asyncio.get_running_loop()
        self._writer = writer
        self._keys = keys
        self._epoch = epoch

    async def waited(self, members: Sequence[bytes], now: int, until: float) -> bool:
        """Wait for those on the bus to be back in this epoch, or for some of that time.

        Args:
            members: Those of the set of processes among which the epoch is.
            now: The time by the clock of Redis, in ms.
            until: When the call gives up, by the event loop's clock.

        Returns:
            Whether it waited: then it is to be looked again.

        Raises:
            LayerUnavailable: They will not be back in time.
        """
        name, run_id = find_epoch(members), self._writer.run_id
        wait = self._epoch.use(name, run_id, now)
        if not wait:
            return False
        if self._loop.time() + wait + LOOK_SECONDS > until:
            if not self._epoch.is_gone(now):
                raise LayerUnavailable("Redis has lost its data, and its members are not back: nothing was sent")
            self._epoch.forget(name, run_id)  # nobody is on the bus any more, and so nobody misses anything
            return False
        await asyncio.sleep(wait)
        return True

    async def restore(self, key: str, until: float) -> None:
        """Have a group made anew by its members: its key holds something else. Raises LayerUnavailable.

        Without an epoch, the next beat begins one, and all processes on the bus join their groups again.
        """
        call = self._writer.call
        if await call("EVAL", scripts.DROP_OTHER_TYPE, 1, key, "zset", until=until):
            await call("ZREMRANGEBYSCORE", self._keys.processes, "+inf", "+inf", until=until)

    async def insist(self, mailbox: str, send: Callable[[], Awaitable[T | None]], until: float) -> T | None:
        """Send to a mailbox; when it is missing, wait for it as long as its process may make it anew.

        A mailbox vanishes before its process does when Redis loses data, when its clock jumps, or when it is evicted.

        Args:
            mailbox: Where `send` sends.
            send: Sends, and returns None if there is no such mailbox.
            until: When the call gives up, by the event loop's clock.

        Returns:
            What `send` returned; None if the process of the mailbox is gone.

        Raises:
            LayerUnavailable: The process lives, and its mailbox is not back in time.
        """
        try:
            answer = await send()
        except Refused as error:
            if not error.wrong_type:
                raise
            # Its process makes anew what is missing at its next beat; of what is of another type it may never hear.
            for key, kind in ((self._keys.mailbox(mailbox), "stream"), (self._keys.full(mailbox), "set")):
                await self._writer.call("EVAL", scripts.DROP_OTHER_TYPE, 1, key, kind, until=until)
            answer = None
        began = self._loop.time()
        while answer is None:
            run_id = self._writer.run_id
            arguments = self._keys.processes, mailbox, round(SILENT_SECONDS * 1000)
            now, runs, silent, members = await self._writer.call("EVAL", scripts.LEASE_RUNS, 1, *arguments, until=until)
            if run_id == self._writer.run_id and not await self.waited(members, now, until):
                late = self._loop.time() - began > MISSING_SECONDS
                if not runs or (silent and late):  # nobody has been here meanwhile: it does not live either
                    return None
                if late:
                    raise LayerUnavailable(
                        f"the mailbox {mailbox} is missing, though its process lives: it got nothing"
                    )
                await asyncio.sleep(LOOK_AGAIN_SECONDS)
            answer = await send()
        return answer
