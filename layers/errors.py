"""What a channel layer raises.

LayerError
├── ChannelFull        the channel holds as many messages as its capacity allows
├── MessageTooLarge    the message is larger than the layer carries
└── LayerUnavailable   the store cannot be reached, or refuses us

Bad names and messages are a caller's mistake and raise TypeError.
"""

from __future__ import annotations


class LayerError(Exception):
    """Something between us and the layer's store; the base of the others."""


class ChannelFull(LayerError):
    """The channel is at its capacity: nothing was sent. Try again later, or give up."""

    def __init__(self, channel: str, capacity: int) -> None:
        super().__init__(channel, capacity)
        self.channel = channel
        self.capacity = capacity

    def __str__(self) -> str:
        return f"channel {self.channel!r} is at its capacity of {self.capacity} messages"


class MessageTooLarge(LayerError):
    """The message does not fit into one entry of the layer: nothing was sent."""

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(size, limit)
        self.size = size
        self.limit = limit

    def __str__(self) -> str:
        return f"a message of {self.size} bytes is over the layer's limit of {self.limit} bytes"


class LayerUnavailable(LayerError):
    """The layer's store cannot be reached or refuses us; says which and why."""
