"""Notes of an app in its folder, where the test reads them also when the process has ended; and its waits."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

STEP = 0.01
KINDS = (OSError, RuntimeError)  # servers have exceptions of their own, but of these kinds
PARTS = 100  # of a stream whose app gets no disconnect


def note(name: str, text: str) -> None:
    with Path(name).open("a") as notes:
        notes.write(f"{text}\n")


@contextmanager
def noting(name: str) -> Iterator[None]:
    """Note the begin of some work, its end or exception, and its clean-up."""
    note(name, "begun")
    try:
        yield
    except BaseException as error:
        kinds = [kind for kind in KINDS if isinstance(error, kind)]
        note(name, (kinds or [type(error)])[0].__name__)
        raise
    else:
        note(name, "done")
    finally:
        note(name, "cleaned up")


async def released(name: str) -> None:
    """Wait until the test lets the app go on."""
    while not Path(f"{name}.released").exists():  # noqa: ASYNC110, ASYNC240 - the test is another process
        await asyncio.sleep(STEP)


def released_thread(name: str) -> None:
    while not Path(f"{name}.released").exists():
        time.sleep(STEP)
