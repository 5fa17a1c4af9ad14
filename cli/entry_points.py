"""The entry points of both commands."""

from __future__ import annotations

import gc
import signal
from collections.abc import Iterator
from contextlib import contextmanager


def asgi_interface() -> None:
    """Run the command `asgi-interface`."""
    # A process that starts has nothing to move yet, and this signal would end it.
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    with _without_collections():
        from asgibus.cli.interface import main  # noqa: PLC0415
    main()


def asgi_worker() -> None:
    """Run the command `asgi-worker`."""
    with _without_collections():
        from asgibus.cli.worker import main  # noqa: PLC0415
    main()


@contextmanager
def _without_collections() -> Iterator[None]:
    """Import modules without garbage collections, which would find nothing and take a tenth of the start-up."""
    gc.disable()
    yield
    gc.freeze()
    gc.enable()
