"""The errors of channel layers.

LayerError
├── ChannelFull        the channel holds as many messages as its capacity allows
├── MessageTooLarge    the message is larger than the layer carries
└── LayerUnavailable   the store cannot be reached, or refuses the connection

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
