"""How often the log tells that the app raised.

What makes an app raise for a datagram comes from anyone, with any sender's address, as often as they like.
"""

from __future__ import annotations

import logging

from asgibus.protocol.connect_request import HTTP, WEBSOCKET
from asgibus.worker.session import Session

logger = logging.getLogger("asgibus.worker")

PAUSE_SECONDS = 10.0  # between two tracebacks for connections of one protocol beside HTTP and WebSocket


class Complaints:
    """Logs what apps raise: always for HTTP and WebSocket, else now and then, with how often it happened meanwhile."""

    def __init__(self) -> None:
        self._silent: dict[str, tuple[float, int]] = {}  # by protocol: until when, and what was not logged

    def raised(self, session: Session, error: BaseException, now: float) -> None:
        """The app raised `error` while it served `session`; `now` by the event loop's clock."""
        kind = session.kind
        unsaid = 0
        if kind != HTTP and kind != WEBSOCKET:
            until, unsaid = self._silent.get(kind, (0.0, 0))
            if now < until:
                self._silent[kind] = until, unsaid + 1
                return
            self._silent[kind] = now + PAUSE_SECONDS, 0
        more = f", and {unsaid} times since this was logged last" if unsaid else ""
        logger.error("the app raised on %s %r%s", kind, session.target, more, exc_info=error)
