"""The epoch of the store: from when on Redis has had what is in it. In an empty one the first beat begins another.

When an epoch begins, the processes on the bus are not back in their groups yet. So a broadcast waits until they have
had time for that.
"""

from __future__ import annotations

from collections.abc import Callable

REGROUP_SECONDS = 3.0  # for everybody to be back in a new epoch: a link comes back within 2 s, and then beats at once
LOOK_AGAIN_SECONDS = 0.1  # until it is looked again whether anybody has come back
PREFIX = b"epoch:"  # behind it the time at which the epoch began, by Redis's clock in ms


class Epoch:
    """The last epoch that one event loop has used. Empty is one that nobody has begun.

    `on_lost` is called once for each that ended with what was in the store, as soon as that is noticed.
    """

    def __init__(self, on_lost: Callable[[], None], used: bytes) -> None:
        """`used`: the one that this process has used last, in another loop."""
        self._on_lost = on_lost
        self.used = used
        self._seen = used
        self._absent: int | None = None  # since when there has been none, by Redis's clock

    def seen(self, epoch: bytes) -> None:
        """A beat has found this one: if it is the first, nothing was there before that could be lost."""
        self._notice(epoch)
        if not self.used:
            self.used = epoch

    def forget(self) -> None:
        """The last process has left, and with it went the epoch: the next one is as the first."""
        self.used = self._seen = b""
        self._absent = None

    def is_gone(self, now: int) -> bool:
        """Whether nobody has begun another one, though everybody has had time for that. `now` as in Redis."""
        return self._absent is not None and now - self._absent >= REGROUP_SECONDS * 1000

    def _notice(self, epoch: bytes) -> None:
        if epoch and epoch != self._seen:
            lost, self._seen = self._seen, epoch
            if lost:
                self._on_lost()

    def use(self, epoch: bytes, now: int) -> float:
        """Seconds to wait until everybody has had time to be back in this one; if 0, it is used. `now` as in Redis."""
        self._notice(epoch)
        if self.used and epoch != self.used:
            if not epoch:
                self._absent = now if self._absent is None else self._absent
                return LOOK_AGAIN_SECONDS
            self._absent = None
            age = (now - int(epoch.removeprefix(PREFIX))) / 1000
            if 0 <= age < REGROUP_SECONDS:  # below 0 the clock was put back
                return REGROUP_SECONDS - age
        self.used = epoch
        self._absent = None
        return 0.0
