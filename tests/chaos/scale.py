"""How large and how long the chaos tests are: quick ones by default, long ones with ASGIBUS_CHAOS=long."""

import os
from typing import TypeVar

T = TypeVar("T")

LONG = os.environ.get("ASGIBUS_CHAOS") == "long"

LEASE = 5.0
"""Seconds that the lease of a process lives, as the product has it."""
NOTICED = LEASE + 1.0
"""Seconds within which the end of a lease is known everywhere."""

RETURN = 25.0
"""Seconds more for which broadcasts are kept for one whose lease has ended."""


def by_form(quick: T, long: T) -> T:
    """The value for the form that is run."""
    return long if LONG else quick


SOCKETS = by_form(100, 2000)
RATE = by_form(300, 500)
"""Messages a second of all sockets together."""
DRAIN_PERIOD = by_form(0.5, 5.0)
"""Given to the workers: seconds over which one spreads what it hands over or closes."""
OUTAGE = by_form(8.0, 30.0)
"""Seconds without any worker."""
PAUSE = by_form(LEASE + 2.0, 3 * LEASE)
"""Seconds that a process is stopped."""
ROUNDS = by_form(1, 3)
