"""What a channel layer raises.

LayerError
├── ChannelFull        the channel holds as many messages as its capacity allows
├── MessageTooLarge    the message is larger than the layer carries
└── LayerUnavailable   the store cannot be reached, or refuses us

Bad names and messages are a caller's mistake and raise TypeError; `ForeignChannel` is one. Where Channels is in use,
what is raised is also of the class of the same name in `channels.exceptions`, which its users catch.
"""

from __future__ import annotations

import sys
from functools import cache
from typing import Any, Self


class LayerError(Exception):
    """Something between us and the layer's store; the base of the others."""


@cache
def _both(ours: Any, theirs: Any) -> type[Any]:
    return type(ours.__name__, (ours, theirs), {"__module__": ours.__module__, "__reduce__": _reduce(ours)})


def _reduce(ours: Any) -> Any:
    return lambda error: (ours, error.args)


class _Known(LayerError):
    """An error whose instances are also of the class of that name in Channels, if that has been imported."""

    def __new__(cls, *args: object) -> Self:
        theirs = getattr(sys.modules.get("channels.exceptions"), cls.__name__, None)
        kind: Any = cls
        if isinstance(theirs, type) and not issubclass(cls, theirs):
            kind = _both(kind, theirs)
        error: Self = super().__new__(kind, *args)
        return error


class ChannelFull(_Known):
    """The channel is at its capacity: nothing was sent. Try again later, or give up."""

    def __init__(self, channel: str, capacity: int) -> None:
        super().__init__(channel, capacity)
        self.channel = channel
        self.capacity = capacity

    def __str__(self) -> str:
        return f"channel {self.channel!r} is at its capacity of {self.capacity} messages"


class MessageTooLarge(_Known):
    """The message does not fit into one entry of the layer: nothing was sent."""

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(size, limit)
        self.size = size
        self.limit = limit

    def __str__(self) -> str:
        return f"a message of {self.size} bytes is over the layer's limit of {self.limit} bytes"


class LayerUnavailable(LayerError):
    """The layer's store cannot be reached or refuses us; says which and why."""


class ForeignChannel(TypeError, AssertionError):
    """A process-local name that another process or layer object has made: only that one can receive from it.

    It is an AssertionError, too, because users of channels_redis catch that.
    """

    def __init__(self, channel: str) -> None:
        super().__init__(channel)
        self.channel = channel

    def __str__(self) -> str:
        return f"{self.channel!r} was made by another process or layer object: only that one can receive from it"
