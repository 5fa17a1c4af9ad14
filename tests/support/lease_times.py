"""Shorter leases, for tests that wait for their end: in the process of the test, and in the peers that it starts."""

import os
from collections.abc import Callable

from asgibus.layers.redis import client, deaths, heartbeat, mailbox, work_queue
from asgibus.layers.redis.ordinary import reader
from asgibus.protocol import retry

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
HANG = 3.0
"""Seconds that an event loop may stand still while its process keeps its lease; in the product 10."""
RETURN = 2.5
"""Seconds more for which broadcasts are kept for one whose lease has ended; in the product 25."""
GRACE = 4.0
"""Seconds after an outage, or the first use of a store, in which no process without a lease is declared dead; 10 in
the product."""
BLOCK = 1
"""Seconds that a blocking read waits in Redis; in the product 2."""
SILENCE = 2.0
"""Seconds without a reply after which a connection is given up: a lease, as in the product, where both are 5."""
RETRY = 0.25
"""Seconds after the second crash of a run until the next; in the product 0.5."""


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
    for module in (client, mailbox, reader, work_queue):
        set_value(module, "BLOCK_SECONDS", BLOCK)
    set_value(client, "SILENCE_SECONDS", SILENCE)
    set_value(retry, "FIRST_DELAY", RETRY)
    set_value(deaths, "SUSPECT_SECONDS", SUSPECT)
    set_value(deaths, "RECONNECT_SECONDS", RECONNECT)


def shorten_if_requested() -> None:
    """Shorten the leases of a peer whose test has `short_leases`."""
    if os.environ.get(VARIABLE):
        shorten()
