"""Streams: named channels whose entries are kept, numbered and followed.

`ChannelLayer.stream` returns a `Stream`. Its one writer numbers the entries and stores them in batches. Readers and
followers get those that are kept and then those that are appended, without a gap and without a duplicate.
"""

from asgibus.layers.errors import EntryTooLarge, StreamError, StreamReset, WriterFenced
from asgibus.layers.settings import StreamLimits
from asgibus.layers.streams.offsets import BEGINNING, Offset, parse_offset
from asgibus.layers.streams.page import ABSENT_SECONDS, Broadcast, Page, StreamState, parse_broadcast
from asgibus.layers.streams.stream import Stream
from asgibus.layers.streams.writer import StreamWriter

__all__ = [
    "ABSENT_SECONDS",
    "BEGINNING",
    "Broadcast",
    "EntryTooLarge",
    "Offset",
    "Page",
    "Stream",
    "StreamError",
    "StreamLimits",
    "StreamReset",
    "StreamState",
    "StreamWriter",
    "WriterFenced",
    "parse_broadcast",
    "parse_offset",
]
