"""A WebSocket client for tests: it never waits without end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

T = TypeVar("T")


class WebSocket:
    """An open WebSocket. `Bus.websocket` makes them. A `str` is a text message, `bytes` a binary one.

    What waits raises TimeoutError after `timeout` seconds.
    """

    def __init__(self, client: ClientConnection, timeout: float) -> None:
        self.client = client
        """The connection of websockets, for all that is not here."""
        self._timeout = timeout

    @property
    def subprotocol(self) -> str | None:
        """What the app has chosen."""
        return self.client.subprotocol

    async def send(self, message: str | bytes) -> None:
        """Send one message. Raises websockets.exceptions.ConnectionClosed, TimeoutError."""
        await self._within(self.client.send(message), "the server took nothing")

    async def receive(self) -> str | bytes:
        """The next message. Raises websockets.exceptions.ConnectionClosed, TimeoutError."""
        return await self._within(self.client.recv(), "nothing came")

    async def closed(self) -> int:
        """Wait until the server has closed this, and give its close code. Raises TimeoutError.

        Messages that come before are dropped.
        """
        return await self._within(self._until_closed(), "the server did not close this")

    async def _until_closed(self) -> int:
        try:
            while True:
                await self.client.recv()
        except ConnectionClosed as closed:
            return closed.rcvd.code if closed.rcvd is not None else 1006

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Close it, and wait for the server's answer. Leaving `bus.websocket(...)` does this, too."""
        await self.client.close(code, reason)

    async def _within(self, waiting: Awaitable[T], what: str) -> T:
        try:
            async with asyncio.timeout(self._timeout):
                return await waiting
        except TimeoutError:
            raise TimeoutError(f"{what} within {self._timeout:g} s") from None
