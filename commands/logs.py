"""Logging for the commands. The rooms only log; here is decided where it goes."""

from __future__ import annotations

import logging
import sys

LEVELS = ("critical", "error", "warning", "info", "debug")


def set_up_logging(level: str, *, access: bool, pid: bool = False) -> None:
    """Send the log of `level` and above to standard error.

    `access=False` leaves out the access log; `pid=True` says of every line which process wrote it.
    """
    handler = logging.StreamHandler(sys.stderr)
    process = "[%(process)d] " if pid else ""
    handler.setFormatter(logging.Formatter(f"%(asctime)s %(levelname)-8s {process}%(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    logging.getLogger("asgibus").setLevel(level.upper())
    if not access:
        logging.getLogger("asgibus.access").setLevel(logging.CRITICAL + 1)
