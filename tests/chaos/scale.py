"""Size and duration of the chaos tests: short by default, long with ASGIBUS_CHAOS=long."""

import os
from typing import TypeVar

from support import lease_times

T = TypeVar("T")

LONG = os.environ.get("ASGIBUS_CHAOS") == "long"


def by_form(quick: T, long: T) -> T:
    """Return the value for the form that is run."""
    return long if LONG else quick


LEASE = by_form(lease_times.LEASE, 5.0)
"""Seconds of a lease, with the fixture `short_leases`. The long form has the times of the product."""
BEAT = by_form(lease_times.BEAT, 1.0)
"""Seconds between two renewals of a lease."""
NOTICED = LEASE + 1.0
"""Seconds within which the end of a lease is known everywhere."""
GRACE = by_form(lease_times.GRACE, 10.0)
"""Seconds after an outage in which no process is declared dead."""
RETURN = by_form(lease_times.RETURN, 25.0)
"""Seconds more for which broadcasts are kept for a process whose lease has ended."""

SOCKETS = by_form(60, 2000)
RATE = by_form(200, 500)
"""Messages a second of all sockets together."""
DRAIN_PERIOD = by_form(0.5, 5.0)
"""`--drain-period` of the workers, in seconds."""
OUTAGE = by_form(4.0, 30.0)
"""Seconds without any worker."""
PAUSE = by_form(LEASE + 1.0, 3 * LEASE)
"""Seconds that a process is stopped."""
ROUNDS = by_form(1, 3)
