"""Waiting for a visible condition, with a bound, instead of sleeping and hoping."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

STEP = 0.01


def wait_until(condition: Callable[[], T], timeout: float = 5.0, what: str = "the condition") -> T:
    """Ask every 10 ms until the answer is true, and return it. Fails with AssertionError after `timeout` seconds.

    It blocks: from async code call it through `anyio.to_thread.run_sync`.
    """
    deadline = time.monotonic() + timeout
    while not (answer := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not come true within {timeout} s")
        time.sleep(STEP)
    return answer
