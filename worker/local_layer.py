"""The layer of apps that another server runs: their groups, channels and streams are those of the process."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from asgibus.layers.memory.layer import InMemoryChannelLayer

logger = logging.getLogger("asgibus.worker")

_layers: Final[WeakKeyDictionary[asyncio.AbstractEventLoop, InMemoryChannelLayer]] = WeakKeyDictionary()
"""One for each event loop."""


def local_layer() -> InMemoryChannelLayer:
    """Return the layer of the running event loop."""
    loop = asyncio.get_running_loop()
    layer = _layers.get(loop)
    if layer is None:
        from asgibus.layers.memory.layer import InMemoryChannelLayer  # noqa: PLC0415  # few processes use it

        layer = _layers[loop] = InMemoryChannelLayer()
        logger.info("the app does not run on asgibus: its groups and channels are those of this process")
    return layer
