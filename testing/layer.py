"""The channel layer of one virtual worker, which can be cut off and can deliver everything late."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

from asgibus.layers.channel_layer import ChannelLayer
from asgibus.layers.contract import Bus, Delivery, Draft, Frame, Handler, Message, Statistics
from asgibus.layers.memory import InMemoryChannelLayer, MemoryBus
from asgibus.layers.names import new_mailbox
from asgibus.layers.offers import Claim
from asgibus.layers.presence import PresentCount, PresentPage
from asgibus.layers.settings import StreamLimits
from asgibus.layers.streams import Stream


class WorkerLayer(ChannelLayer):
    """The shared layer until `cut` is called. Then the worker is off the bus, and its calls are cancelled."""

    def __init__(self, shared: InMemoryChannelLayer) -> None:
        self.settings = shared.settings
        self.counts = shared.counts
        self.delay = 0.0
        """The delay of everything that reaches this worker, in seconds."""
        self.is_cut = False
        self.shared = shared
        self._bus: _WorkerBus | None = None

    def cut(self) -> None:
        """Take the worker off the bus, as if its process was killed. The others know it at once."""
        self.is_cut = True
        if self._bus is not None:
            self.shared.remove(self._bus)

    def _shared_or_cancel(self) -> InMemoryChannelLayer:
        if self.is_cut:
            raise asyncio.CancelledError("this worker was killed")
        return self.shared

    def bus(self, role: str, handler: Handler) -> AbstractAsyncContextManager[Bus]:
        self._bus = _WorkerBus(self, role, handler)
        return self._shared_or_cancel().place(self._bus)

    async def send(self, channel: str, message: Message, *, delay: float = 0.0) -> None:
        await self._shared_or_cancel().send(channel, message, delay=delay)

    async def receive(self, channel: str) -> Message:
        return await self._shared_or_cancel().receive(channel)

    async def new_channel(self, prefix: str = "specific") -> str:
        return await self._shared_or_cancel().new_channel(prefix)

    @property
    def client_prefix(self) -> str:
        """The prefix of the shared layer."""
        return self.shared.client_prefix

    async def group_add(self, group: str, channel: str) -> None:
        await self._shared_or_cancel().group_add(group, channel)

    async def group_discard(self, group: str, channel: str) -> None:
        await self._shared_or_cancel().group_discard(group, channel)

    async def group_send(
        self,
        group: str,
        message: Message,
        *,
        keep: int | None = None,
        id: str | None = None,  # noqa: A002
        placeholder: str | None = None,
    ) -> bool:
        shared = self._shared_or_cancel()
        return await shared.group_send(group, message, keep=keep, id=id, placeholder=placeholder)

    def any_stream(self, name: str, limits: StreamLimits | None = None) -> Stream:
        return self._shared_or_cancel().any_stream(name, limits)

    async def send_to_group(self, group: str, message: Message) -> None:
        await self._shared_or_cancel().send_to_group(group, message)

    async def _present(self, group: str, cursor: str | None) -> PresentPage:
        return await self._shared_or_cancel()._present(group, cursor)

    async def _present_count(self, group: str) -> PresentCount:
        return await self._shared_or_cancel()._present_count(group)

    async def channel_statistics(self, channel: str) -> Statistics:
        return await self._shared_or_cancel().channel_statistics(channel)

    async def global_statistics(self) -> Statistics:
        return await self._shared_or_cancel().global_statistics()

    async def flush(self) -> None:
        await self._shared_or_cancel().flush()

    async def declare_dead(self, mailbox: str) -> None:
        await self._shared_or_cancel().declare_dead(mailbox)

    async def close(self) -> None:
        """Do nothing: the shared layer stays open."""


class _WorkerBus(MemoryBus):
    """The bus of a worker on the shared layer."""

    def __init__(self, layer: WorkerLayer, role: str, handler: Handler) -> None:
        loop = asyncio.get_running_loop()
        super().__init__(layer.shared, new_mailbox(role), _LateHandler(layer, handler, loop), loop)
        self._worker_layer = layer

    def post(self, mailbox: str, frame: Frame | Draft, size: int = 0) -> None:
        if not self._worker_layer.is_cut:
            super().post(mailbox, frame, size)

    async def claim(self, channels: Sequence[str], limit: int, *, wait: float | None = None) -> list[Claim]:
        claims = await super().claim(channels, limit, wait=wait)
        await self._late(bool(claims))
        return claims

    async def take(self, channel: str, limit: int, *, once: bool = False) -> list[Delivery]:
        deliveries = await super().take(channel, limit, once=once)
        await self._late(bool(deliveries))
        return deliveries

    async def _late(self, received: bool) -> None:
        if received and self._worker_layer.delay:
            await asyncio.sleep(self._worker_layer.delay)


class _LateHandler(Handler):
    """Pass frames to a handler late and in order, and none once the worker is cut off."""

    def __init__(self, layer: WorkerLayer, handler: Handler, loop: asyncio.AbstractEventLoop) -> None:
        self._layer = layer
        self._handler = handler
        self._loop = loop
        self._waiting: deque[tuple[float, str, Sequence[Frame]]] = deque()

    def batch(self, sender: str, frames: Sequence[Frame]) -> None:
        if self._layer.is_cut:
            return
        if not self._layer.delay and not self._waiting:
            self._handler.batch(sender, frames)
            return
        due = self._loop.time() + self._layer.delay
        self._waiting.append((due, sender, frames))
        if len(self._waiting) == 1:
            self._loop.call_at(due, self._deliver_due)

    def _deliver_due(self) -> None:
        while self._waiting and not self._layer.is_cut:
            due, sender, frames = self._waiting[0]
            if due > self._loop.time():
                self._loop.call_at(due, self._deliver_due)
                return
            self._handler.batch(sender, frames)
            self._waiting.popleft()

    def undelivered(self, mailbox: str) -> None:
        self._handler.undelivered(mailbox)

    def interrupted(self) -> None:
        self._handler.interrupted()

    def orphaned(self, claim: Claim) -> None:
        self._handler.orphaned(claim)

    def declined(self, entry: Any) -> None:
        self._handler.declined(entry)
