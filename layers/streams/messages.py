"""The messages between the writers, the followers and the store of streams, over process-local channels and groups."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol

from asgibus.layers.errors import ChannelFull, LayerUnavailable
from asgibus.layers.names import stream_group
from asgibus.layers.streams.identity import WriterIdentity
from asgibus.layers.streams.page import Broadcast

logger = logging.getLogger("asgibus.layers")

CANCELLED: Final = "asgibus.stream.cancelled"
"""The type of the message for a writer that somebody has asked to stop."""
FENCED: Final = "asgibus.stream.fenced"
"""The type of the message for a writer that may not write any more. Its `why` says the reason."""
FOLLOWS: Final = 4
"""How often a follower is added in the time for which a channel stays in a group."""


class Layer(Protocol):
    """The layer, as the writers and followers of its streams use it."""

    @property
    def group_expiry(self) -> float: ...

    async def new_channel(self, prefix: str = ...) -> str: ...

    async def receive(self, channel: str) -> dict[str, Any]: ...

    async def send(self, channel: str, message: dict[str, Any]) -> None: ...

    async def send_to_group(self, group: str, message: dict[str, Any]) -> None: ...


class StreamMessages:
    """The messages of the streams of a layer.

    The followers of a stream are the members of its group. Each writer has a channel, which tells it of its fencing and
    of `Stream.cancel`.
    """

    def __init__(
        self,
        layer: Layer,
        join: Callable[[str, str], Awaitable[None]],
        leave: Callable[[str, str], Awaitable[None]],
    ) -> None:
        """Use a layer.

        Args:
            layer: The layer.
            join: Adds a process-local channel to a group of the layer itself, for the `group_expiry` of the layer.
            leave: Removes it.
        """
        self._layer = layer
        self._join = join
        self._leave = leave
        self.writers: dict[str, WriterIdentity] = {}
        """The writers here, by their channels."""
        self._readers: set[str] = set()

    def gauges(self) -> dict[str, int]:
        """Return how many streams are written and read here, and the bytes that are kept of those that are written."""
        return {
            "written streams": len(self.writers),
            "stream bytes": sum(writer.kept_bytes for writer in [*self.writers.values()]),
            "stream readers": len(self._readers),
        }

    async def new_channel(self) -> str:
        """Return a new process-local channel."""
        return await self._layer.new_channel("stream")

    async def receive(self, channel: str) -> dict[str, Any]:
        """Wait for the next message of a process-local channel. Raises LayerUnavailable."""
        return await self._layer.receive(channel)

    async def follow(self, name: str, channel: str) -> float:
        """Add a channel to the followers of a stream. Raises LayerUnavailable.

        Returns:
            In how many seconds to do so again, so that it stays.
        """
        self._readers.add(channel)
        await self._join(stream_group(name), channel)
        return self._layer.group_expiry / FOLLOWS

    async def unfollow(self, name: str, channel: str) -> None:
        """Remove a channel from the followers of a stream. Raises LayerUnavailable."""
        self._readers.discard(channel)
        await self._leave(stream_group(name), channel)

    async def tell(self, broadcast: Broadcast) -> None:
        """Send new entries or another state to the followers of a stream. Raises LayerUnavailable."""
        await self._layer.send_to_group(stream_group(broadcast.stream), broadcast.message())

    async def ask_to_stop(self, channel: str) -> None:
        """Tell a writer that somebody has asked it to stop; nobody if the channel is empty."""
        await self._send(channel, {"type": CANCELLED})

    async def fence(self, channel: str, why: str) -> None:
        """Tell a writer why it may not write any more; nobody if the channel is empty."""
        await self._send(channel, {"type": FENCED, "why": why})

    async def _send(self, channel: str, message: dict[str, Any]) -> None:
        """Tell a writer. It learns the same from the reply to its next batch."""
        if channel:
            try:
                await self._layer.send(channel, message)
            except (ChannelFull, LayerUnavailable, TypeError) as error:  # a damaged stream may name no channel
                logger.debug("the writer %s was not told: %s", channel, error)
