"""Logging for the commands. The rooms only log; here is decided where it goes."""

from __future__ import annotations

import logging
import sys

LEVELS = ("critical", "error", "warning", "info", "debug")


def set_up_logging(level: str, *, access: bool) -> None:
    """Send the log of `level` and above to standard error; `access=False` leaves out the access log."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-8s %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    logging.getLogger("asgibus").setLevel(level.upper())
    if not access:
        logging.getLogger("asgibus.access").setLevel(logging.CRITICAL + 1)
