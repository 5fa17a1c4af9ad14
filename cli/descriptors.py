"""The number of files and sockets that this process may have open."""

from __future__ import annotations

import resource
from contextlib import suppress

MOST = 1 << 20  # a hard limit may be infinite, and the kernel takes no more than this as the soft one
RESERVED = 64  # at least, for all but clients: connections to Redis, the admin port, logs, the files of an embedded app
RESERVED_SHARE = 8  # of many descriptors, one in so many


def raise_limit() -> int:
    """Raise the soft limit of open files to the hard one, as far as possible, and return the new limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST if hard == resource.RLIM_INFINITY else min(hard, MOST)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):  # macOS takes less than it says
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    return MOST if soft == resource.RLIM_INFINITY else soft


def sockets_within(limit: int) -> int:
    """Return how many sockets of clients fit in a limit of open files."""
    return max(1, limit - min(limit // 2, max(RESERVED, limit // RESERVED_SHARE)))
