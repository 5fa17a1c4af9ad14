"""The layer of apps that another server runs: their groups, channels and streams are those of the process."""

from __future__ import annotations

import asyncio
import logging
from typing import Final
from weakref import WeakKeyDictionary

from asgibus.layers.contract import ChannelLayer

logger = logging.getLogger("asgibus.worker")

_layers: Final[WeakKeyDictionary[asyncio.AbstractEventLoop, ChannelLayer]] = WeakKeyDictionary()
"""One for each event loop."""


def local_layer() -> ChannelLayer:
    """Return the layer of the running event loop."""
    loop = asyncio.get_running_loop()
    layer = _layers.get(loop)
    if layer is None:
        from asgibus.layers.memory.layer import InMemoryChannelLayer  # noqa: PLC0415  # few processes use it

        layer = _layers[loop] = InMemoryChannelLayer()
        logger.info("the app does not run on asgibus: its groups and channels are those of this process")
    return layer
