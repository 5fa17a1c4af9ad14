"""The channel layer within one process."""

from asgibus.layers.memory.layer import InMemoryChannelLayer, MemoryBus

__all__ = ["InMemoryChannelLayer", "MemoryBus"]
