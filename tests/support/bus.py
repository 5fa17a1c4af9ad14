"""For tests of layers and of what stands on them: a handler that remembers, and waiting in async code."""

from collections.abc import Callable

from asgibus.layers.conformance.recorder import Recorder
from asgibus.layers.conformance.tools import until
from asgibus.layers.contract import ChannelLayer

__all__ = ["MakeLayer", "Recorder", "until"]

MakeLayer = Callable[..., ChannelLayer]
