"""Wait for a visible condition, with a bound, instead of sleeping and hoping; and check times that are promised."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

STEP = 0.01

HANG = 30.0
"""Seconds after which a wait without a promised time fails: an idle machine needs milliseconds."""

TOLERANCE = 2.0
"""Factor by which a promised time may be exceeded, since the machine runs other tests too.

In tests/chaos the factor is 1, and a test that is late is run once more.
"""


class TooLate(AssertionError):
    """A promised time was not kept."""


def in_time(seconds: float, promised: float, what: str = "the operation") -> None:
    """Raise TooLate if `seconds`, a measured time, exceed the promised bound."""
    if seconds >= promised * TOLERANCE:
        raise TooLate(f"{what} took {seconds:.3f} s, and {promised:g} s are promised")


def bound(timeout: float | None) -> float:
    """Return the seconds to wait for an event that is promised within `timeout`, or never promised (None)."""
    return HANG if timeout is None else timeout * TOLERANCE


def over(timeout: float | None, what: str) -> AssertionError:
    """Return the error to raise when `what` did not come true within `bound(timeout)`."""
    kind = AssertionError if timeout is None else TooLate
    return kind(f"{what} did not come true within {bound(timeout):g} s")


def wait_until(condition: Callable[[], T], timeout: float | None = None, what: str = "the condition") -> T:
    """Call `condition` every 10 ms until its result is true, and return the result.

    The call blocks; from async code call it through `anyio.to_thread.run_sync`.

    Args:
        timeout: seconds within which the result is promised to be true; None if no time is promised.
        what: the condition in words, for the error.

    Raises:
        TooLate: a promised time was not kept.
        AssertionError: the result was not true within HANG seconds.
    """
    deadline = time.monotonic() + bound(timeout)
    while not (answer := condition()):
        if time.monotonic() > deadline:
            raise over(timeout, what)
        time.sleep(STEP)
    return answer
