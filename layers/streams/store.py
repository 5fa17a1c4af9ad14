"""The storage of streams, as a channel layer implements it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from asgibus.layers.settings import StreamLimits
from asgibus.layers.streams.identity import WriterIdentity
from asgibus.layers.streams.messages import StreamMessages
from asgibus.layers.streams.offsets import Offset
from asgibus.layers.streams.page import Page, StreamState

ANOTHER_WRITER = "another writer has begun"
PAGE_BYTES = 256 * 1024
"""The bytes of batches in one page, and one batch more."""
REMEMBERED_SECONDS = 7 * 86400.0
"""The time for which the number of the last kept message of a group is known after the messages have expired: members
that have got them all need no reset then."""
DELETED = "the stream was deleted"
NOT_OPEN = "the stream is not open any more"
WRITER_GONE = "the writer is gone"
"""The error of a stream whose writer has died."""


@dataclass(slots=True, frozen=True)
class Batch:
    """Entries that are stored together."""

    first: int
    """The number of the first entry."""
    packed: bytes
    """The items as one msgpack array."""
    count: int

    @property
    def last(self) -> int:
        """The number of the last entry."""
        return self.first + self.count - 1


class StreamStore(Protocol):
    """Stores the streams of a layer.

    It tells followers that a stream was deleted, and writers of their fencing and of `cancel`: see `messages`.

    Every method may raise LayerUnavailable. Those that write may be called again after that: a batch is stored once.
    """

    @property
    def messages(self) -> StreamMessages:
        """The messages between the writers, the followers and this store."""

    async def begin(self, name: str, writer: WriterIdentity, *, restart: bool) -> Page:
        """Make this writer the only one of a stream, and set its epoch and its term.

        A stream that is over or absent is begun anew, and so is an open one if `restart`.

        Returns:
            The state of the stream: the writer goes on after `last`.
        """

    async def append(self, name: str, writer: WriterIdentity, batch: Batch, tail: Sequence[Batch] = ()) -> bool:
        """Store a batch. If the store has lost the entries before it, the stream begins again in its epoch.

        Args:
            name: The stream.
            writer: The writer.
            batch: The batch.
            tail: The batches before it, as many as the writer still has. They are stored again after such a loss.

        Returns:
            Whether somebody has asked the writer to stop.

        Raises:
            WriterFenced: Another writer has begun, or the stream was ended or deleted.
        """

    async def renew(self, name: str, writer: WriterIdentity, last: int, tail: Sequence[Batch] = ()) -> bool:
        """Give a sign of life, as `append` does without a batch.

        Args:
            name: The stream.
            writer: The writer.
            last: The number of the newest entry.
            tail: The last batches, as many as the writer still has.
        """

    async def finish(
        self,
        name: str,
        writer: WriterIdentity,
        last: int,
        state: StreamState,
        error: str = "",
        *,
        grace: float = 0.0,
        tail: Sequence[Batch] = (),
    ) -> None:
        """End a stream. One that its writer has left open for a while may be ended later.

        Args:
            name: The stream.
            writer: The writer.
            last: The number of the newest entry.
            state: How it ends.
            error: Why it has failed.
            grace: Seconds for which it stays open, as it is likely to be begun again; then it fails with that error.
            tail: The last batches, as many as the writer still has.

        Raises:
            WriterFenced: As `append`.
        """

    async def leave(self, name: str, writer: WriterIdentity) -> None:
        """Forget a writer, whatever has become of its stream."""

    async def page(self, name: str, after: Offset, limit: int) -> Page:
        """Return up to `limit` entries after an offset."""

    async def cancel(self, name: str) -> bool:
        """Ask the writer of an open stream to stop. Return whether there is an open stream."""

    async def delete(self, name: str) -> bool:
        """Delete a stream, and tell its followers and its writer. Return whether there was one."""

    async def keep(self, name: str, packed: bytes, limits: StreamLimits, message_id: str) -> tuple[bool, Offset]:
        """Keep a message of a group, in a stream that has no writer.

        Args:
            name: The stream.
            packed: The message, as a msgpack array of one item.
            limits: What is kept, and for how long after the last message.
            message_id: The id of the message.

        Returns:
            Whether no message with that id was kept, and the offset of the one that is.
        """
