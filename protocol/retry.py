"""The rules for further runs of the app, when a run ends before its connection does.

A run ends early because its worker hands it over, forgets it, or dies. Then the connection is offered again for a
further run, or it ends.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from asgibus.protocol.states import AppState

IDEMPOTENT: Final = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"})  # RFC 9110 section 9.2.2
CRASH_LIMIT = 5  # workers in a row that died with a connection, without progress between: then it is closed
FIRST_DELAY = 0.5  # seconds after the second crash, doubled with each further one: see `retry_delay`


class RunEnd(StrEnum):
    """Why a run ended before its connection."""

    HANDED_OVER = "its worker handed it over"
    FORGOTTEN = "its worker does not know it any more"
    KILLED = "its worker is dead"
    ABANDONED = "the worker that claimed it died before it sent a frame"

    @property
    def by_death(self) -> bool:
        """Whether the worker has died."""
        return self is RunEnd.KILLED or self is RunEnd.ABANDONED


def retry_delay(crashes: int, chance: float) -> float:
    """Return the seconds to wait before a connection is offered again after a crash.

    Connections of the same dead worker are offered at different times. So those that did not cause the crash make
    progress apart from the one that did.

    Args:
        crashes: The number of workers in a row that have died with the connection, from 1.
        chance: A random number from 0 to 1.
    """
    if crashes < 2:
        return 0.0
    return FIRST_DELAY * 2.0 ** (crashes - 2) * (1 + chance)


def may_run_http_again(state: AppState, method: str, *, whole: bool) -> bool:
    """Return whether another run may handle a request: it is idempotent, and nothing of it was answered or lost.

    Args:
        state: The state of the answer.
        method: The method of the request.
        whole: Whether the interface server still has the whole body, as far as it has come.
    """
    return state is AppState.WAITING and whole and method in IDEMPOTENT


def may_run_websocket_again(state: AppState, *, accepted: bool, resumable: bool) -> bool:
    """Return whether another run may continue with a WebSocket: it was not answered yet, or the app can resume it.

    Args:
        state: The state of the answer.
        accepted: Whether a run has accepted the client.
        resumable: Whether the app can continue with an accepted client.
    """
    return resumable if accepted else state is AppState.HANDSHAKE
