"""A WebSocket client for tests, whose calls have a time limit."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

T = TypeVar("T")


class WebSocket:
    """An open WebSocket, as `Bus.websocket` makes it. A `str` is a text message, `bytes` are a binary one."""

    def __init__(self, client: ClientConnection, timeout: float) -> None:
        self.client = client
        """The client connection of the websockets package."""
        self._timeout = timeout

    @property
    def subprotocol(self) -> str | None:
        """The subprotocol that the app has chosen, or None."""
        return self.client.subprotocol

    async def send(self, message: str | bytes) -> None:
        """Send one message.

        Raises:
            websockets.exceptions.ConnectionClosed: The WebSocket is closed.
            TimeoutError: The server accepted nothing within the timeout of the bus.
        """
        await self._within(self.client.send(message), "the server took nothing")

    async def receive(self) -> str | bytes:
        """Wait for the next message and return it.

        Raises:
            websockets.exceptions.ConnectionClosed: The WebSocket is closed.
            TimeoutError: No message came within the timeout of the bus.
        """
        return await self._within(self.client.recv(), "nothing came")

    async def closed(self) -> int:
        """Wait until the server has closed the WebSocket, dropping messages that come before.

        Returns:
            The close code of the server; 1006 if it sent none.

        Raises:
            TimeoutError: The server did not close the WebSocket within the timeout of the bus.
        """
        return await self._within(self._until_closed(), "the server did not close this")

    async def _until_closed(self) -> int:
        try:
            while True:
                await self.client.recv()
        except ConnectionClosed as closed:
            return closed.rcvd.code if closed.rcvd is not None else 1006

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Close the WebSocket and wait for the answer of the server. Leaving `bus.websocket(...)` does the same."""
        await self.client.close(code, reason)

    async def _within(self, waiting: Awaitable[T], what: str) -> T:
        try:
            async with asyncio.timeout(self._timeout):
                return await waiting
        except TimeoutError:
            raise TimeoutError(f"{what} within {self._timeout:g} s") from None
