"""asgibus: a channel-layer message bus for Python web apps.

Interface servers hold the sockets, workers run the app, a channel layer joins them. App authors need one name from
here, `connection`, which gives an app the bus behind the connection that it serves.
"""

from asgibus.worker.connection import Connection, connection

__all__ = ["Connection", "connection"]
