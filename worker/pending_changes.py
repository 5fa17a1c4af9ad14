"""Changes that an app waits for: the interface server makes them, and replies."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class PendingChanges:
    """The calls of the app that wait for a reply of the interface server, each by the name of its object."""

    def __init__(self) -> None:
        self._waiters: list[tuple[str, asyncio.Future[None]]] = []

    def add(self, name: str) -> asyncio.Future[None]:
        """Return the future of a change that is posted now.

        Args:
            name: The name of what is changed, such as a group.
        """
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append((name, waiter))
        return waiter

    def on_reply(self, name: str, error: Exception | None) -> None:
        """Wake the call that has waited longest for a change of that name.

        Args:
            name: The name, as it was given to `add`.
            error: What the call raises; None if the change was made.
        """
        for index, (each, waiter) in enumerate(self._waiters):
            if each == name:
                del self._waiters[index]
                if waiter.done():
                    pass  # the app has stopped waiting
                elif error is None:
                    waiter.set_result(None)
                else:
                    waiter.set_exception(error)
                return

    def end(self, error: Callable[[], Exception] | None) -> None:
        """Wake every call, because no reply will come.

        Args:
            error: Makes what a call raises; None if the calls are cancelled.
        """
        waiters, self._waiters = self._waiters, []
        for _, waiter in waiters:
            if error is None:
                waiter.cancel()
            elif not waiter.done():
                waiter.set_exception(error())
                waiter.exception()  # marks it as retrieved: the app may have stopped waiting
