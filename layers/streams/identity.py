"""A writer of a stream, as the store knows it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from asgibus.layers.settings import StreamLimits

WRITER_SECONDS = 60.0
"""The time for which a stream stays open whose writer gives no sign of life, if no process has noticed its death."""
UNWATCHED_SECONDS = 9.0
"""The same, for a process whose death nobody may notice."""
SIGNS: Final = 3
"""How often a writer gives a sign of life in that time."""


@dataclass(slots=True)
class WriterIdentity:
    """A writer, as the store knows it."""

    channel: str
    """The process-local channel that tells the writer of its fencing, and of `Stream.cancel`."""
    limits: StreamLimits
    renew_soon: Callable[[], None]
    """Has the writer call `StreamStore.renew` soon, from any thread."""
    grace: float = 0.0
    """Seconds for which the stream stays open if the writer dies or fails, because its work is likely to be begun
    again. 0 if it is not."""
    content_type: str = ""
    """The content type for HTTP clients; empty if the app has given none."""
    silence: float = WRITER_SECONDS
    """Seconds without a sign of life after which the stream fails. `StreamStore.begin` sets it."""
    epoch: int = 0
    """The epoch of the stream. `StreamStore.begin` sets it."""
    term: int = 0
    """The number of the writer in its epoch: one with a higher term fences this one. `StreamStore.begin` sets it."""
    kept_bytes: int = 0
    """The bytes of the stream that are kept, packed. `StreamStore.append` sets it."""
