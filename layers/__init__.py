"""Channel layers: the bus under the servers, and a channel layer for apps.

`open_layer(url)` gives the layer for a URL: `memory://` within one process, `redis://`, `rediss://` and `unix://`
between processes. The contract stands in `contract`, the rules for names in `names`, bytes in `codec`.
"""

from asgibus.layers.contract import Bus, ChannelLayer, Claim, Handler, Offer
from asgibus.layers.errors import ChannelFull, LayerError, LayerUnavailable, MessageTooLarge
from asgibus.layers.memory import InMemoryChannelLayer
from asgibus.layers.redis import RedisChannelLayer
from asgibus.layers.registry import open_layer

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
