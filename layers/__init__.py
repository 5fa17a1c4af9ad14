"""Channel layers: messages between processes, by name, for apps and for the servers.

`open_layer(url)` returns the layer for a URL: `memory://` within one process, `redis://`, `rediss://`, `unix://`,
`redis+sentinel://` and `redis+cluster://` between processes. `ChannelLayer` is the contract of every layer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from asgibus.layers.channel_layer import ChannelLayer
from asgibus.layers.contract import Bus, Handler
from asgibus.layers.errors import ChannelFull, LayerError, LayerUnavailable, MessageTooLarge
from asgibus.layers.factory import open_layer
from asgibus.layers.offers import Claim, Offer

if TYPE_CHECKING:
    from asgibus.layers.memory import InMemoryChannelLayer
    from asgibus.layers.redis import RedisChannelLayer

__all__ = [
    "Bus",
    "ChannelFull",
    "ChannelLayer",
    "Claim",
    "Handler",
    "InMemoryChannelLayer",
    "LayerError",
    "LayerUnavailable",
    "MessageTooLarge",
    "Offer",
    "RedisChannelLayer",
    "open_layer",
]


def __getattr__(name: str) -> type[ChannelLayer]:
    """Import a layer when it is used first. Most processes use one of the two."""
    if name == "InMemoryChannelLayer":
        from asgibus.layers.memory import InMemoryChannelLayer  # noqa: PLC0415

        return InMemoryChannelLayer
    if name == "RedisChannelLayer":
        from asgibus.layers.redis import RedisChannelLayer  # noqa: PLC0415

        return RedisChannelLayer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
