"""Consumers of Channels that a hand-over does not end: `HandOverMixin`.

    class Chat(HandOverMixin, AsyncWebsocketConsumer):
        async def connect(self):
            await self.accept()
            if not self.resumed:
                ...  # welcome the client

        async def disconnect(self, code):
            ...  # the client is gone: this is not called when another worker takes the socket over

A consumer with the mixin runs on any server.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from asgibus.worker.connection import Connection, connection

try:
    from channels.exceptions import StopConsumer  # type: ignore[import-untyped]
except ImportError as error:
    raise ImportError("asgibus.channels needs the package channels: pip install channels") from error

if TYPE_CHECKING:

    class _Consumer:
        scope: dict[str, Any]
        channel_layer: Any
        channel_name: str
        groups: list[str]

        async def dispatch(self, message: dict[str, Any]) -> None: ...
else:
    _Consumer = object

__all__ = ["HandOverMixin"]


class HandOverMixin(_Consumer):
    """A mixin for consumers of WebSockets, sync or async. Name it before the consumer class.

    `disconnect` is called when the client is gone, and not when another worker takes the socket over. On other servers
    than asgibus nothing changes.
    """

    @property
    def resumed(self) -> bool:
        """Whether an earlier run of the consumer has accepted this client, which must not be welcomed again."""
        found = self._connection
        return found is not None and found.resumed

    @property
    def _connection(self) -> Connection | None:
        return connection(self.scope) if "asgibus" in (self.scope.get("extensions") or {}) else None

    async def dispatch(self, message: dict[str, Any]) -> None:
        """Handle a message, as consumers do, except for the disconnect of a hand-over."""
        if message["type"] == "websocket.disconnect" and (found := self._connection) is not None and found.handed_over:
            if self.channel_layer is not None:
                for group in self.groups:
                    await self.channel_layer.group_discard(group, self.channel_name)
            raise StopConsumer
        await super().dispatch(message)
