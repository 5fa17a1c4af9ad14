"""Test an app on the bus within one process: HTTP and WebSocket clients, and workers that can be killed or drained.

A test imports `Bus` from here.
"""

from asgibus.testing.bus import Bus
from asgibus.testing.websocket import WebSocket
from asgibus.testing.worker import VirtualWorker

__all__ = ["Bus", "VirtualWorker", "WebSocket"]
