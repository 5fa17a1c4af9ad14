"""The settings of a channel layer: limits and times."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import translate
from typing import Any

EXPIRY_SECONDS = 60.0  # as the 2016 specification suggests, like the next two
GROUP_EXPIRY_SECONDS = 86400.0
CAPACITY = 100
WAIT_SECONDS = 5.0  # then a sender gets an error, and can tell its client
BACKLOG_BYTES = 16 * 1024 * 1024
LONGEST_SECONDS = 10 * 365 * 86400  # of a message or a membership: Redis refuses times that its clock cannot hold
STREAM_ENTRIES = 5000
STREAM_BYTES = 4 * 1024 * 1024
STREAM_KEPT_SECONDS = 3600.0  # a stream is a cache beside a database

Pattern = str | re.Pattern[str]
LimitsByPattern = Mapping[Pattern, "StreamLimits | Mapping[str, Any]"]


@dataclass(frozen=True, slots=True)
class StreamLimits:
    """The limits of the entries that a stream keeps. Beyond them, the oldest entries fall off.

    Raises:
        ValueError: A limit is not valid.
    """

    entries: int = STREAM_ENTRIES
    """The number of entries that are kept."""
    bytes: int = STREAM_BYTES
    """The bytes of packed entries that are kept; the newest batch in any case."""
    kept: float = STREAM_KEPT_SECONDS
    """Seconds for which the stream is kept after its end."""

    def __post_init__(self) -> None:
        numbers: list[tuple[str, object]] = [("entries", self.entries), ("bytes", self.bytes)]
        for name, number in numbers:
            if isinstance(number, bool) or not isinstance(number, int) or not 0 < number < 2**53:
                raise ValueError(f"the limit of a stream's {name} is a whole number above 0, not {number!r}")
        require_kept(self.kept)


@dataclass(frozen=True, slots=True)
class LayerSettings:
    """The options of every layer, by the names that Channels uses."""

    expiry: float = EXPIRY_SECONDS
    """Seconds after which an unread message is dropped."""
    group_expiry: float = GROUP_EXPIRY_SECONDS
    """Seconds after which a membership ends unless it is renewed."""
    capacity: int = CAPACITY
    """The number of unread messages that a channel holds."""
    channel_capacity: tuple[tuple[re.Pattern[str], int], ...] = ()
    """Other capacities by pattern of the channel's name; the first match counts."""
    wait: float = WAIT_SECONDS
    """Seconds that a call waits for a store that is away, before it raises LayerUnavailable."""
    backlog: int = BACKLOG_BYTES
    """Bytes of messages that wait for the store at once; the senders of further messages wait in turn."""
    stream_limits: tuple[tuple[re.Pattern[str], StreamLimits], ...] = ()
    """Other limits of streams by pattern of the stream's name; the first match counts."""

    @classmethod
    def of(
        cls,
        *,
        expiry: float = EXPIRY_SECONDS,
        group_expiry: float = GROUP_EXPIRY_SECONDS,
        capacity: int = CAPACITY,
        channel_capacity: Mapping[Pattern, int] | None = None,
        wait: float | None = None,
        backlog: int = BACKLOG_BYTES,
        stream_limits: LimitsByPattern | None = None,
    ) -> LayerSettings:
        """Check the options, and compile globs.

        Raises:
            ValueError: A time, a capacity or a limit is not above 0, or a time is above ten years.
        """
        capacities = tuple((_compile(pattern), number) for pattern, number in (channel_capacity or {}).items())
        limits = tuple((_compile(pattern), _limits(each)) for pattern, each in (stream_limits or {}).items())
        numbers: list[tuple[str, object]] = [("expiry", expiry), ("group_expiry", group_expiry), ("capacity", capacity)]
        wait = _Process.wait if wait is None else wait
        numbers += [("wait", wait), ("backlog", backlog)]
        numbers += [(f"channel_capacity of {pattern.pattern!r}", number) for pattern, number in capacities]
        for name, number in numbers:
            if isinstance(number, bool) or not isinstance(number, int | float) or not number > 0:
                raise ValueError(f"a channel layer's {name} is a number above 0, not {number!r}")
        for name, seconds in (("expiry", expiry), ("group_expiry", group_expiry), ("wait", wait)):
            if seconds > LONGEST_SECONDS:
                raise ValueError(f"a channel layer's {name} is at most {LONGEST_SECONDS} seconds, not {seconds!r}")
        return cls(expiry, group_expiry, capacity, capacities, wait, backlog, limits)

    def capacity_of(self, channel: str) -> int:
        """Return how many unread messages a channel holds."""
        for pattern, capacity in self.channel_capacity:
            if pattern.match(channel):
                return capacity
        return self.capacity

    def limits_of(self, stream: str) -> StreamLimits:
        """Return the limits of a stream."""
        for pattern, limits in self.stream_limits:
            if pattern.match(stream):
                return limits
        return StreamLimits()


def _compile(pattern: Pattern) -> re.Pattern[str]:
    return re.compile(translate(pattern)) if isinstance(pattern, str) else pattern


def _limits(limits: StreamLimits | Mapping[str, Any]) -> StreamLimits:
    if isinstance(limits, StreamLimits):
        return limits
    if unknown := sorted(set(limits) - {"entries", "bytes", "kept"}):
        raise ValueError(f"the limits of a stream are 'entries', 'bytes' and 'kept', not {', '.join(unknown)}")
    return StreamLimits(**limits)


class _Process:
    """Defaults of this process."""

    wait = WAIT_SECONDS


def set_default_wait(seconds: float) -> None:
    """Set the default of `wait` for layers that are made in this process from now on.

    A worker calls this before it loads its app, so that a layer of the app, such as that of Channels, waits as long as
    the layer of the worker.
    """
    _Process.wait = seconds


def require_delay(delay: object) -> float:
    """Return a delay in seconds as a float. Raises ValueError if it is not a number from 0 to ten years."""
    if isinstance(delay, int | float) and not isinstance(delay, bool) and 0 <= delay <= LONGEST_SECONDS:
        return float(delay)
    raise ValueError(f"a delay is a number of seconds from 0 to {LONGEST_SECONDS}, not {delay!r}")


_CONTENT_TYPE = re.compile(r"[A-Za-z0-9!#$&^_.+-]+/[A-Za-z0-9!#$&^_.+-]+(?: *;[ -~]*)?\Z", re.ASCII)
LONGEST_CONTENT_TYPE = 200  # characters


def is_content_type(value: object) -> bool:
    """Return whether a value is a content type, RFC 9110 section 8.3.1, such as `text/plain; charset=utf-8`."""
    short = isinstance(value, str) and len(value) <= LONGEST_CONTENT_TYPE
    return short and _CONTENT_TYPE.match(str(value)) is not None


def require_content_type(value: str) -> str:
    """Return the content type of a stream, or "" for none. Raises ValueError for what is neither."""
    if value == "" or is_content_type(value):
        return value
    raise ValueError(f"the content type of a stream is one such as text/plain, not {value!r:.100}")


def require_kept(seconds: object) -> float:
    """Return for how long a stream is kept, as a float. Raises ValueError if it is not above 0 and up to ten years."""
    if isinstance(seconds, int | float) and not isinstance(seconds, bool) and 0 < seconds <= LONGEST_SECONDS:
        return float(seconds)
    raise ValueError(f"a stream is kept for a number of seconds above 0, up to {LONGEST_SECONDS}, not {seconds!r}")
