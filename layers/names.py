"""The rules for channel and group names.

A name is 1 to 100 characters of `[A-Za-z0-9._-]`. One `!` splits a process-local name into the mailbox of its process
(up to and with the `!`) and the local part, which the owner makes: `interface.4f9c2a!17`.

The channels that an app makes with `new_channel` begin with a prefix of its choice: `chat.p4f9c2a!17`. All channels of
one process share a mailbox, whose name depends on the id of the process alone.

An internal group has a name that no app can give to a group: a kind and a name, with a colon between.
"""

from __future__ import annotations

import re
import secrets
from functools import lru_cache

MAX_NAME_LENGTH = 100  # the 2016 specification asks every layer to accept so many
PROCESS_ID_BYTES = 8  # 64 random bits: two processes of one deployment never meet
CHANNELS_MARK = "p"  # begins the id of a process that made channels, and no id of a server
CHANNELS_ROLE = "specific."  # the prefix that `new_channel` has by default

_CHANNEL = re.compile(r"[A-Za-z0-9._-]+(?:![A-Za-z0-9._-]*)?\Z", re.ASCII)
_GROUP = re.compile(r"[A-Za-z0-9._-]+\Z", re.ASCII)
_INTERNAL_GROUP = re.compile(rf"(?:stream:group|[a-z]{{1,10}}):[A-Za-z0-9._-]{{1,{MAX_NAME_LENGTH}}}\Z", re.ASCII)
_STREAM = re.compile(rf"(?:group:)?[A-Za-z0-9._-]{{1,{MAX_NAME_LENGTH}}}\Z", re.ASCII)


def require_channel(name: object, *, whole: bool = False) -> str:
    """Return `name` if it is a channel name.

    Args:
        name: The name.
        whole: Whether to refuse a mailbox without a local part, which cannot be sent to or received from.

    Raises:
        TypeError: It is not; the error says the rule.
    """
    if isinstance(name, str) and len(name) <= MAX_NAME_LENGTH and _CHANNEL.match(name):
        if whole and name.endswith("!"):
            raise TypeError(f"{name!r} is a mailbox, not a channel: name the local part behind the '!'")
        return name
    raise TypeError(
        f"channel names are 1 to {MAX_NAME_LENGTH} ASCII letters, digits, '.', '-' or '_', "
        f"with at most one '!' for a process-local name; not {name!r}"
    )


def require_group(name: object) -> str:
    """Return `name` if it is a group name, else raise TypeError with the rule."""
    if isinstance(name, str) and len(name) <= MAX_NAME_LENGTH and _GROUP.match(name):
        return name
    raise TypeError(f"group names are 1 to {MAX_NAME_LENGTH} ASCII letters, digits, '.', '-' or '_'; not {name!r}")


def require_any_group(name: object) -> str:
    """Return `name` if it is the name of a group of an app, or of an internal one, else raise TypeError."""
    if isinstance(name, str) and _INTERNAL_GROUP.match(name):
        return name
    return require_group(name)


def require_stream(name: object) -> str:
    """Return `name` if it is the name of a stream that an app writes.

    Clients may choose it where an app lets them read the stream that a path names. So it is none of a group.

    Raises:
        TypeError: It is not; the error says the rule.
    """
    stream = require_any_stream(name)
    if ":" in stream:
        raise TypeError(f"{stream!r} has the kept messages of a group: see `group_past`, and `group_add` with `after`")
    return stream


def require_any_stream(name: object) -> str:
    """Return `name` if it is the name of a stream of an app, or of the kept messages of a group, else raise TypeError.

    The latter is one such as `group:chat`.
    """
    if isinstance(name, str) and _STREAM.match(name):
        return name
    raise TypeError(f"stream names are 1 to {MAX_NAME_LENGTH} ASCII letters, digits, '.', '-' or '_'; not {name!r}")


def stream_group(stream: str) -> str:
    """Return the group of the followers of a stream."""
    return f"stream:{stream}"


def split_local(name: str) -> tuple[str, str] | None:
    """Return (mailbox, local part) of a process-local name, None for an ordinary one."""
    owner, mark, local = name.partition("!")
    return (mailbox_of(owner), local) if mark else None


def parse_channel(name: object) -> tuple[str, str] | None:
    """Return (mailbox, local part) of the name of a process-local channel, None for that of an ordinary channel.

    Raises:
        TypeError: It is neither; the error says the rule.
    """
    return _parse_channel(name) if type(name) is str else split_local(require_channel(name, whole=True))


@lru_cache(4096)  # a message is sent or received with each
def _parse_channel(name: str) -> tuple[str, str] | None:
    return split_local(require_channel(name, whole=True))


@lru_cache(1024)  # one for each process and prefix, not for each channel
def mailbox_of(owner: str) -> str:
    """Return the mailbox of a process-local name, by the part before the `!`."""
    process = owner.rpartition(".")[2]
    if process.startswith(CHANNELS_MARK) and len(process) == 1 + 2 * PROCESS_ID_BYTES:
        return channels_mailbox(process)
    return owner + "!"


def new_mailbox(role: str) -> str:
    """Return a new, unique mailbox name, such as `interface.4f9c2a…!`."""
    return require_channel(f"{role}.{secrets.token_hex(PROCESS_ID_BYTES)}!")


def new_process() -> str:
    """Return a new, unique id for a process that makes channels."""
    return CHANNELS_MARK + secrets.token_hex(PROCESS_ID_BYTES)


def channels_mailbox(process: str) -> str:
    """Return the mailbox of all channels that the process with this id has made."""
    return f"{CHANNELS_ROLE}{process}!"


def claimant_channel(mailbox: str) -> str:
    """Return the shared channel whose entries only the process of that mailbox may claim."""
    return f"affinity.{mailbox.removesuffix('!')}"


def has_channels(mailbox: str) -> bool:
    """Return whether a mailbox is that of channels that an app has made, and not that of a server."""
    return mailbox.startswith(CHANNELS_ROLE + CHANNELS_MARK)
