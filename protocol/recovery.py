"""What becomes of a connection when the run of the app that served it ends before it does.

A run ends early because its worker hands it over, forgets it, or dies. Then the connection is either offered again, to
begin a further run, or it ends: what may be repeated is decided here, and so is when to stop trying.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from asgibus.protocol.events import Event
from asgibus.protocol.states import App

IDEMPOTENT = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"})  # RFC 9110 section 9.2.2
KILLS = 2  # deaths of workers with the same event in hand: the first may be chance, the second is its doing
START_KILLS = 5  # deaths as a further run begins, or before: then a worker's own trouble is the likelier cause


class Ending(StrEnum):
    """How a run ended before its connection."""

    HANDED_OVER = "its worker handed it over"
    FORGOTTEN = "its worker does not know it any more"
    KILLED = "its worker is dead"
    ABANDONED = "the worker that claimed it died before it named itself"
    LOST = "it may have been claimed, by whom is unknown"

    @property
    def by_death(self) -> bool:
        """Whether a worker died of it, or with it."""
        return self is Ending.KILLED or self is Ending.ABANDONED


@dataclass(slots=True)
class Deaths:
    """How many workers in a row died while the same event of a connection was the next, or in hand."""

    event: Event | None = None
    """The oldest event that the dead run had not acknowledged."""
    kills: int = 0
    """Deaths of workers that had it in hand, as far as can be known."""
    others: int = 0
    """Deaths of workers that had not come so far."""

    @property
    def count(self) -> int:
        """All of them."""
        return self.kills + self.others

    def too_many(self, event: Event, limit: int, *, begun: bool, suspect: bool) -> bool:
        """Count a death with this event at the head; whether that makes as many in a row as the limit.

        `begun`: whether the worker had said that its app gets the event. The first one is not asked to say so: then it
        counts if it had nothing else in hand or ended by its own doing (`suspect`), as far as is known here.
        """
        if event is not self.event:
            self.event, self.kills, self.others = event, 0, 0
            begun = suspect
        if begun:
            self.kills += 1
        else:
            self.others += 1
        return self.kills >= limit or self.count >= START_KILLS


def may_run_http_again(state: App, method: str, *, whole: bool) -> bool:
    """Whether the app may run again for a request: idempotent, still here as a whole, and not answered at all."""
    return state is App.WAITING and whole and method in IDEMPOTENT


def may_run_websocket_again(state: App, *, accepted: bool, resumable: bool) -> bool:
    """Whether the app may run again for a WebSocket: it was not answered yet, or the app can resume it."""
    return resumable if accepted else state is App.HANDSHAKE
