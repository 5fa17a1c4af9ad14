"""One run of the app for messages of a channel: it has one message at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, MutableMapping
from typing import Any

from asgibus.compatibility.callables import Scope
from asgibus.layers.contract import Delivery, Message


class Instance:
    """What one run of the app is called with.

    A message is handled when the app asks for the next one: then `handled(instance, delivery)` is called. What it means
    that the app ends is for the owner to say, who starts it.
    """

    def __init__(self, scope: Scope, handled: Callable[[Instance, Delivery], None]) -> None:
        self.scope = scope
        self.delivery: Delivery | None = None
        """The message that is not handled yet."""
        self.has_it = False
        """Whether the app has got that message."""
        self.handled_any = False
        """Whether it has handled a message before."""
        self._handled = handled
        self._given = asyncio.Event()

    def give(self, delivery: Delivery) -> None:
        """The next message. It must have none."""
        assert self.delivery is None
        self.delivery, self.has_it = delivery, False
        self._given.set()

    async def receive(self) -> Message:
        """For the app. A cancelled call takes no message."""
        if self.delivery is not None and self.has_it:
            delivery, self.delivery = self.delivery, None
            self.handled_any = True
            self._handled(self, delivery)
        while self.delivery is None or self.has_it:
            self._given.clear()
            await self._given.wait()
        self.has_it = True
        return self.delivery.message

    async def send(self, event: MutableMapping[str, Any]) -> None:
        """For the app. Raises RuntimeError: behind a message there is no client."""
        raise RuntimeError(
            f"there is nobody to send {event.get('type', 'an event')!r} to behind a message of the channel "
            f"{self.scope['channel']!r}: use the channel layer"
        )
