"""The errors of channel layers.

LayerError
├── ChannelFull        the channel holds as many messages as its capacity allows
├── MessageTooLarge    the message is larger than the layer carries
│   └── EntryTooLarge  the entry is larger than a stream keeps
├── LayerUnavailable   the store cannot be reached, or refuses the connection
├── StreamReset        entries that were to be read are not kept any more
├── StreamError        the stream has failed
└── WriterFenced       this writer may not write any more

Names and messages that are not valid are mistakes of the caller and raise TypeError, of which `ForeignChannel` is a
subclass. Where Channels is in use, `ChannelFull` and `MessageTooLarge` are also instances of the class of the same name
in `channels.exceptions`, which its users catch.
"""

from __future__ import annotations

import sys
from functools import cache
from typing import Any, Self


class LayerError(Exception):
    """The base of the errors of channel layers."""


@cache
def _both(ours: Any, theirs: Any) -> type[Any]:
    return type(ours.__name__, (ours, theirs), {"__module__": ours.__module__, "__reduce__": _reduce(ours)})


def _reduce(ours: Any) -> Any:
    return lambda error: (ours, error.args)


class _Known(LayerError):
    """An error whose instances also belong to the class of that name in Channels, once Channels is imported."""

    def __new__(cls, *args: object) -> Self:
        theirs = getattr(sys.modules.get("channels.exceptions"), cls.__name__, None)
        kind: Any = cls
        if isinstance(theirs, type) and not issubclass(cls, theirs):
            kind = _both(kind, theirs)
        error: Self = super().__new__(kind, *args)
        return error


class ChannelFull(_Known):
    """The channel is at its capacity, and the message was not sent.

    Attributes:
        channel: The name of the channel.
        capacity: How many unread messages the channel holds.
    """

    def __init__(self, channel: str, capacity: int) -> None:
        super().__init__(channel, capacity)
        self.channel = channel
        self.capacity = capacity

    def __str__(self) -> str:
        return f"channel {self.channel!r} is at its capacity of {self.capacity} messages"


class MessageTooLarge(_Known):
    """The message is larger than the layer carries, and was not sent.

    Attributes:
        size: The size of the packed message, in bytes.
        limit: The limit of the layer, in bytes.
    """

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(size, limit)
        self.size = size
        self.limit = limit

    def __str__(self) -> str:
        return f"a message of {self.size} bytes is over the layer's limit of {self.limit} bytes"


class EntryTooLarge(MessageTooLarge):
    """The entry is larger than a stream keeps, and was not appended."""

    def __str__(self) -> str:
        return (
            f"an entry of {self.size} bytes is over the limit of {self.limit} bytes for an entry of a stream: append "
            "it in parts, or keep it elsewhere and append where it is"
        )


class LayerUnavailable(LayerError):
    """The store of the layer cannot be reached, or refuses the connection. The text says which store, and why."""


class ForeignChannel(TypeError, AssertionError):
    """Another process or layer object made this process-local name: only that one can receive from it.

    This is also an AssertionError, which users of channels_redis catch.
    """

    def __init__(self, channel: str) -> None:
        super().__init__(channel)
        self.channel = channel

    def __str__(self) -> str:
        return f"{self.channel!r} was made by another process or layer object: only that one can receive from it"


class StreamReset(LayerError):
    """Entries that were to be read are not kept any more, or the stream was begun anew or deleted.

    Attributes:
        stream: The name of the stream.
        resume: The offset from which reading is possible: that in front of the first entry that is kept.
        why: What has happened.
    """

    def __init__(self, stream: str, resume: str, why: str) -> None:
        super().__init__(stream, resume, why)
        self.stream = stream
        self.resume = resume
        self.why = why

    def __str__(self) -> str:
        return f"the stream {self.stream!r} {self.why}: read on after {self.resume!r}"


class StreamError(LayerError):
    """The stream has failed: its writer has left it with an error, or is gone. All that was kept has been read.

    Attributes:
        stream: The name of the stream.
        error: What has happened.
    """

    def __init__(self, stream: str, error: str) -> None:
        super().__init__(stream, error)
        self.stream = stream
        self.error = error

    def __str__(self) -> str:
        return f"the stream {self.stream!r} has failed: {self.error}"


class WriterFenced(LayerError):
    """The writer may not write to its stream any more: another one has begun, or the stream was ended or deleted.

    Attributes:
        stream: The name of the stream.
        why: What has happened.
    """

    def __init__(self, stream: str, why: str) -> None:
        super().__init__(stream, why)
        self.stream = stream
        self.why = why

    def __str__(self) -> str:
        return f"this writer of the stream {self.stream!r} may not write any more: {self.why}"
