"""For tests of apps: the bus within the process of the test, with clients, and workers that can be killed or drained.

`Bus` is all that a test imports from here.
"""

from asgibus.testing.bus import Bus
from asgibus.testing.websocket import WebSocket
from asgibus.testing.worker import VirtualWorker

__all__ = ["Bus", "VirtualWorker", "WebSocket"]
