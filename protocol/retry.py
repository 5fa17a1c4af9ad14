"""What becomes of a connection when the run of the app that served it ends before it does.

A run ends early because its worker hands it over, forgets it, or dies. Then the connection is either offered again, to
begin a further run, or it ends: what may be repeated is decided here, and so is when to stop trying.
"""

from __future__ import annotations

from enum import StrEnum

from asgibus.protocol.states import AppState

IDEMPOTENT = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"})  # RFC 9110 section 9.2.2
CRASH_LIMIT = 5  # workers that died in a row with a connection, without progress between: then the connection is closed
FIRST_DELAY = 0.5  # seconds, doubled with each further crash: see `retry_delay`


class RunEnd(StrEnum):
    """How a run ended before its connection."""

    HANDED_OVER = "its worker handed it over"
    FORGOTTEN = "its worker does not know it any more"
    KILLED = "its worker is dead"
    ABANDONED = "the worker that claimed it died before it named itself"

    @property
    def by_death(self) -> bool:
        """Whether a worker died of it, or with it."""
        return self is RunEnd.KILLED or self is RunEnd.ABANDONED


def retry_delay(crashes: int, chance: float) -> float:
    """Return the seconds to wait before a connection is offered again after a crash.

    Connections that were in the same dead workers come back at different times, so that those which are not the
    cause of the crashes make progress apart from the one that is.

    Args:
        crashes: how many workers in a row have died with the connection, from 1.
        chance: a random number from 0 to 1.
    """
    if crashes < 2:
        return 0.0
    return FIRST_DELAY * 2.0 ** (crashes - 2) * (1 + chance)


def may_run_http_again(state: AppState, method: str, *, whole: bool) -> bool:
    """Whether the app may run again for a request: idempotent, still here as a whole, and not answered at all."""
    return state is AppState.WAITING and whole and method in IDEMPOTENT


def may_run_websocket_again(state: AppState, *, accepted: bool, resumable: bool) -> bool:
    """Whether the app may run again for a WebSocket: it was not answered yet, or the app can resume it."""
    return resumable if accepted else state is AppState.HANDSHAKE
