"""See the answer of the app before the client does, for the few connections that need it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, cast

from asgibus.protocol.events import Event

if TYPE_CHECKING:
    from asgibus.interface_server.connections.connection import Connection
    from asgibus.interface_server.terminator import SharedWriter


class AnswerReader(Protocol):
    """Reads an answer, and may change it."""

    def read(self, event: Event) -> tuple[Event, bool]:
        """Return an event of the app as the client gets it, and whether this was the last one to read."""


class FirstAnswer:
    """A terminator before that of a connection, until its reader has read enough. Implements `Terminator`.

    Args:
        connection: The connection.
        reader: Reads the events of the app.
    """

    def __init__(self, connection: Connection, reader: AnswerReader) -> None:
        self._connection = connection
        self._terminator = connection.terminator
        self._reader = reader
        connection.terminator = self

    @property
    def write_paused(self) -> bool:
        """See `Terminator`."""
        return self._terminator.write_paused

    def write_event(self, event: Event) -> None:
        """See `Terminator`."""
        written, done = self._reader.read(event)
        if done:
            self._connection.terminator = self._terminator
        self._terminator.write_event(written)
        if not done and self._connection.terminator is not self:  # that of an event stream, which has begun
            self._terminator, self._connection.terminator = self._connection.terminator, self

    def broadcast(self, event: Event, shared: dict[str, Any]) -> None:
        """See `Terminator`."""
        self._terminator.broadcast(event, shared)

    def write_shared(self, events: Sequence[Event], shared: dict[str, Any]) -> None:
        """See `SharedWriter`."""
        cast("SharedWriter", self._terminator).write_shared(events, shared)

    def detach(self) -> None:
        """See `SharedWriter`."""
        cast("SharedWriter", self._terminator).detach()

    def keeps_up(self) -> bool:
        """See `Terminator`."""
        return self._terminator.keeps_up()

    def pause(self) -> None:
        """See `Terminator`."""
        self._terminator.pause()

    def resume(self) -> None:
        """See `Terminator`."""
        self._terminator.resume()

    def fail(self, status: int, close_code: int) -> None:
        """See `Terminator`."""
        self._terminator.fail(status, close_code)

    def flush(self) -> None:
        """See `Flushable`."""
        self._terminator.flush()

    def abort(self) -> None:
        """See `Abortable`."""
        self._terminator.abort()
