"""A channel-layer message bus for Python web apps.

Interface servers hold the sockets, workers run the app, and a channel layer carries the events between them. An app
needs one name from here: `connection(scope)` returns the connection that the app serves.
"""

from asgibus.worker.connection import Connection, connection
from asgibus.worker.stream_response import stream_response

__all__ = ["Connection", "connection", "stream_response"]
