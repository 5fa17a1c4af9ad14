"""Waiting for a visible condition, with a bound, instead of sleeping and hoping; and times that are promised."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

STEP = 0.01

HANG = 30.0
"""Seconds for what takes milliseconds on a machine that has nothing else to do: over only when it never comes."""


class TooLate(AssertionError):
    """A promised time was not kept. A machine that stops for a moment does that, too: the test is run once more."""


def in_time(seconds: float, promised: float, what: str = "it") -> None:
    """Raises TooLate unless `seconds`, what it took, are fewer than promised."""
    if seconds >= promised:
        raise TooLate(f"{what} took {seconds:.3f} s, and {promised:g} s are promised")


def over(timeout: float | None, what: str) -> AssertionError:
    """What to raise when `what` did not come true within `timeout` seconds, or within HANG if nothing is promised."""
    if timeout is None:
        return AssertionError(f"{what} did not come true within {HANG:g} s")
    return TooLate(f"{what} did not come true within {timeout:g} s")


def wait_until(condition: Callable[[], T], timeout: float | None = None, what: str = "the condition") -> T:
    """Ask every 10 ms until the answer is true, and return it.

    Fails with TooLate after `timeout` seconds, which is for times that are promised; without one with AssertionError
    after HANG seconds. It blocks: from async code call it through `anyio.to_thread.run_sync`.
    """
    deadline = time.monotonic() + (HANG if timeout is None else timeout)
    while not (answer := condition()):
        if time.monotonic() > deadline:
            raise over(timeout, what)
        time.sleep(STEP)
    return answer
