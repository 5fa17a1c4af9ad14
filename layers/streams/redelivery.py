"""The redelivery of the background message that is being handled, as the writers of streams see it."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Final

from asgibus.layers.errors import LayerUnavailable, WriterFenced

logger = logging.getLogger("asgibus.layers")


class Redelivery:
    """Says whether a message is delivered again if its handler fails, and fails streams that wait for it in vain.

    A writer that an exception leaves keeps its stream open for the next delivery. If the handler has caught that
    exception and handles the message after all, there is none.
    """

    def __init__(self, seconds: Callable[[], float]) -> None:
        """Describe a message.

        Args:
            seconds: Returns within how many seconds it is delivered again if its handler fails; 0 if it is not.
        """
        self.seconds = seconds
        self._waiting: list[Callable[[], Awaitable[None]]] = []

    def add(self, fail: Callable[[], Awaitable[None]]) -> None:
        """Note how to fail a stream that waits for the next delivery."""
        self._waiting.append(fail)

    async def fail(self) -> None:
        """Fail the streams, because the message was handled. Those that cannot be reached fail by themselves."""
        while self._waiting:
            try:
                await self._waiting.pop()()
            except WriterFenced:  # another writer has begun meanwhile
                continue
            except LayerUnavailable as problem:
                logger.warning("a stream stays open for a while, though nobody will write to it: %s", problem)


NONE: Final = Redelivery(lambda: 0.0)
redelivery: ContextVar[Redelivery] = ContextVar("asgibus_redelivery", default=NONE)
"""The message that is being handled. A worker of background messages sets it."""
