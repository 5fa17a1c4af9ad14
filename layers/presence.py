"""The presence of users in groups: the data that processes store, and the messages that tell joins and leaves.

Each interface server stores, for each group, the users with connections of its own. A user who is at several of them is
one user. The store says who was the first one to add a user to the group, and who the last one to remove it, so that a
join and a leave are told once.

The connections of a user are such a group, too: an internal one, whose "users" are the connections.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from hashlib import blake2b
from typing import Any, ClassVar, Final, NamedTuple

from asgibus.layers.codec import pack

USER_LENGTH = 200  # characters of a user's id
INFO_BYTES = 16 * 1024  # of the info about a user: it is kept in memory for every connection
INFO_LEVELS = 100  # of lists and dicts in it: far less than what JSON and msgpack can read, wherever that is done
PAGE: Final = 1000  # users in one answer
CLOSE_TYPE: Final = "asgibus.close"
"""The type of the message that closes connections of every kind: (code, reason)."""

_PLACEHOLDER = re.compile(r"\{(user|info|count|at)\}")
_PLACEHOLDER_BYTES = re.compile(rb"\{(user|info|count|at)\}")

OnStored = Callable[[str | None], None]
"""Called when a change is stored, with None, or with the reason why it is not yet."""


class Present(NamedTuple):
    """A user who is in a group."""

    user: str
    """The id of the user, as `identify` got it."""
    info: Any
    """The data about the user, as `identify` got it."""
    since: float
    """When the user has joined, in seconds since 1970 by the clock of the interface server."""
    connections: int
    """The number of connections of the user in this group; 0 for a user who may be about to come back."""


class PresentPage(NamedTuple):
    """A part of the users in a group."""

    users: list[Present]
    cursor: str | None
    """Pass it to `present` for the next part; None if this is the last one."""


class PresentCount(NamedTuple):
    """The number of users in a group, and of their connections."""

    users: int
    connections: int


class UserConnection(NamedTuple):
    """A connection of a user."""

    reply_channel: str
    """The channel to which events for this connection can be sent."""
    info: Any
    """The data about the user, as `identify` got it at this connection."""
    since: float
    """When this connection was identified, in seconds since 1970."""


class Announcements(NamedTuple):
    """The events that tell the members of a group who has joined and left, with placeholders."""

    join: dict[str, Any] | None
    leave: dict[str, Any] | None
    most: int
    """The number of users in the group above which neither is told."""


def require_user(user: object) -> str:
    """Return the id of a user if it is valid. Raises TypeError or ValueError, which says the rule."""
    if not isinstance(user, str):
        raise TypeError(f"the id of a user is a str, not {type(user).__name__}: write str(user.id)")
    if not 0 < len(user) <= USER_LENGTH:
        raise ValueError(f"the id of a user has 1 to {USER_LENGTH} characters, not {len(user)}")
    user.encode()  # raises UnicodeEncodeError, a ValueError, for a lone surrogate
    return str(user)


def pack_info(info: object) -> bytes:
    """Return packed info about a user.

    Raises:
        TypeError: The info holds a value that JSON does not know.
        ValueError: The packed info is larger than 16 KiB, or has over 100 levels.
    """
    _to_json(info)
    packed = pack(info)
    if len(packed) > INFO_BYTES:
        raise ValueError(f"the info about a user has at most {INFO_BYTES} bytes, not {len(packed)}")
    level = [info]
    for _ in range(INFO_LEVELS):
        level = [value for each in level if isinstance(each, dict | list | tuple) for value in _values(each)]
        if not level:
            return packed
    raise ValueError(f"the info about a user has at most {INFO_LEVELS} levels of lists and dicts")


def _values(collection: Any) -> Iterable[Any]:
    return collection.values() if isinstance(collection, dict) else collection


def user_key(user: str) -> str:
    """Return the name of a user in keys, of a fixed length: an id may be long, and need not be shown."""
    return blake2b(user.encode(), digest_size=16).hexdigest()


def user_group(user: object) -> str:
    """Return the internal group of a user's connections. Raises as `require_user`."""
    return f"user:{user_key(require_user(user))}"


def close_message(code: object, reason: object) -> dict[str, Any]:
    """Return the message that closes connections.

    Raises:
        TypeError: The code is no int, or the reason no str.
        ValueError: The code may not be sent, or the reason is too long.
    """
    if not isinstance(code, int) or not isinstance(reason, str):
        raise TypeError(f"connections are closed with an int and a str, not {code!r:.50} and {reason!r:.50}")
    if code != 1000 and not 3000 <= code <= 4999:
        raise ValueError(f"{code} is not a close code of an app: use 1000, or one from 3000 to 4999 (RFC 6455, 7.4.2)")
    if len(reason.encode()) > 123:
        raise ValueError("a close reason has at most 123 bytes")
    return {"type": CLOSE_TYPE, "code": int(code), "reason": str(reason)}


def fill(template: Mapping[str, Any], present: Present, count: int, at: int) -> dict[str, Any]:
    """Return an event with the placeholders in its texts and bytes replaced.

    Args:
        template: An event with `{user}`, `{info}`, `{count}` and `{at}` in it, each of which becomes JSON.
        present: The user.
        count: The number of users in the group.
        at: When the user has joined or left, in microseconds since 1970 by the clock of the store.
    """
    values = {"user": _to_json(present.user), "info": _to_json(present.info), "count": str(count), "at": str(at)}
    filled = dict(template)
    for name, value in template.items():
        if isinstance(value, str):
            filled[name] = _PLACEHOLDER.sub(lambda found: values[found[1]], value)
        elif isinstance(value, bytes):
            filled[name] = _PLACEHOLDER_BYTES.sub(lambda found: values[found[1].decode()].encode(), value)
    return filled


def merge(found: list[Present]) -> Present:
    """Return a user who is at several interface servers as one, with the info of the latest."""
    latest = max(found, key=lambda each: each.since)
    since = min(each.since for each in found)
    return latest._replace(since=since, connections=sum(each.connections for each in found))


def _to_json(value: object) -> str:
    try:
        return json.dumps(value, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(f"the info about a user must be JSON: {error}") from None


class BusPresence(ABC):
    """The users whom one interface server has stored, and the wills of its connections. `Bus.presence` returns it.

    What is stored here belongs to this process: the layer writes it again when the store has lost it, and drops it when
    the process has died. Then others are told of the leaves, and get the wills.
    """

    lasts: ClassVar[bool]
    """Whether what is stored outlives this process, so that it tells of leaves before it stops."""

    @abstractmethod
    def show(
        self,
        group: str,
        present: Present,
        on_stored: OnStored | None = None,
        *,
        join: Mapping[str, Any] | None = None,
    ) -> None:
        """Add a user to a group, or replace what is stored about the user, and tell the group of a first join.

        The call buffers and returns at once. A user who could not be stored in time is stored when the store is back,
        unless `hide` is called.

        Args:
            group: The group, which this process has joined.
            present: The user.
            on_stored: Called when the user is stored, or could not be stored in time.
            join: Further members of the event that tells of the join, if there is one.
        """

    @abstractmethod
    def hide(self, group: str, user: str) -> None:
        """Remove a user from a group, and tell the group if no other process has the user. The call buffers."""

    @abstractmethod
    def announce(self, group: str, announcements: Announcements) -> None:
        """Set the events by which a group is told of joins and leaves. Call it before `show`."""

    @abstractmethod
    def set_will(self, connection: int, group: str, event: dict[str, Any], on_stored: OnStored) -> None:
        """Store an event for a group, which is sent when a connection ends, or this process dies."""

    @abstractmethod
    def clear_will(self, connection: int) -> None:
        """Remove the will of a connection. The call buffers and returns at once."""

    @abstractmethod
    def execute_will(self, connection: int) -> None:
        """Send the will of a connection that has ended. The call buffers and returns at once."""

    @abstractmethod
    async def page(self, group: str, cursor: str | None = None) -> PresentPage:
        """Return users of a group: see `ChannelLayer.present`. Raises LayerUnavailable."""

    @abstractmethod
    async def settle(self) -> None:
        """Wait until everything is stored and told, as far as the store can be reached."""
