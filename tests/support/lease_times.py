"""Shorter leases, for tests that wait for their end: in the process of the test, and in the peers that it starts."""

import os
from collections.abc import Callable

from asgibus.layers.redis import deaths, heartbeat

VARIABLE = "SHORT_LEASES"
"""Set in the environment of the peers."""

LEASE = 2.0
"""Seconds of a lease that is not renewed; 5 in the product."""
BEAT = 0.4
"""Seconds between two renewals; in the product 1."""
SIGN = 0.25
"""Seconds after a renewal in which the thread gives another sign of life; in the product 0.6."""
SUSPECT = 0.5
"""Seconds without a sign of life after which the connections of a process are looked for; in the product 0.9."""
RECONNECT = 0.3
"""Seconds for a process without connections to come back; in the product 0.4."""
HANG = 4.0
"""Seconds that an event loop may stand still while its process keeps its lease; in the product 10."""
RETURN = 5.0
"""Seconds more for which broadcasts are kept for one whose lease has ended; in the product 25."""
GRACE = 6.0
"""Seconds after an outage, or the first use of a store, in which no process without a lease is declared dead; 10 in
the product."""


def shorten(set_value: Callable[[object, str, object], None] = setattr) -> None:
    """Set the times of leases in this process, before it has a lease."""
    times = {
        "LIFE_SECONDS": LEASE,
        "BEAT_SECONDS": BEAT,
        "EXTEND_SECONDS": SIGN,
        "PULSE_SECONDS": BEAT / 2,
        "SILENT_SECONDS": 3 * BEAT,
        "GRACE_SECONDS": GRACE,
        "RETURN_SECONDS": RETURN,
        "HANG_SECONDS": HANG,
    }
    for name, value in times.items():
        assert hasattr(heartbeat, name), name
        set_value(heartbeat, name, value)
    set_value(deaths, "SUSPECT_SECONDS", SUSPECT)
    set_value(deaths, "RECONNECT_SECONDS", RECONNECT)


def shorten_if_requested() -> None:
    """Shorten the leases of a peer whose test has `short_leases`."""
    if os.environ.get(VARIABLE):
        shorten()
