"""Channel layers: messages between processes, by name, for apps and for the servers.

`open_layer(url)` returns the layer for a URL: `memory://` within one process, `redis://`, `rediss://`, `unix://`,
`redis+sentinel://` and `redis+cluster://` between processes. `ChannelLayer` is the contract of every layer.
"""

from asgibus.layers.contract import Bus, ChannelLayer, Claim, Handler, Offer
from asgibus.layers.errors import ChannelFull, LayerError, LayerUnavailable, MessageTooLarge
from asgibus.layers.factory import open_layer
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
