"""The versions of everything that goes over the bus, and which of them this release reads.

Two neighbouring releases understand each other in both directions. So a release that changes a format reads the new
version and still writes the old one, and the release after it writes the new one. An addition without a new version
is optional: a process that does not know it ignores it, and one that lacks it does without.

Each process publishes its formats with its lease. A process that does not understand all of these does not start, and
a program that only sends does not send. If a version is found nevertheless that this release does not read, it is
refused, counted and logged.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from asgibus.layers.compiling import mypyc_attr

RELEASE: Final = "0.1.0"
"""The name of this release, which the packages have, too. Their metadata take 5 ms to read at each start."""


class Format(NamedTuple):
    """The versions of one kind of message."""

    name: str
    """The kind, in the plural, for log lines."""
    written: int
    oldest: int
    """The oldest version that this release reads."""
    newest: int
    """The newest version that this release reads; above `written` in a release that prepares a change."""

    def reads(self, version: object) -> bool:
        """Return whether this release reads a version."""
        return type(version) is int and self.oldest <= version <= self.newest

    def refuse(self, version: object, writer: str) -> ForeignVersion:
        """Return the error for a version that this release does not read.

        Args:
            version: The version.
            writer: The process that has written it, as far as it is known.
        """
        read = f"{self.oldest}" if self.oldest == self.newest else f"{self.oldest} to {self.newest}"
        newer = type(version) is int and version > self.newest
        return ForeignVersion(
            f"{self.name} have version {version!r:.20}, where asgibus {RELEASE} reads version {read}: upgrade "
            f"{'this process' if newer else writer}, or give one of the two its own --prefix"
        )


@mypyc_attr(native_class=False)
class ForeignVersion(ValueError):
    """Another release has written this, in a version that this release does not read. The text says what to upgrade."""


CONNECT_REQUEST: Final = Format("connect requests", written=3, oldest=3, newest=3)
"""Offers on a shared channel, also those of a hand-over: `protocol.connect_request`, and the events in them."""
PAYLOAD: Final = Format("payloads", written=3, oldest=3, newest=3)
"""Entries of a mailbox: frames, with the events and messages in them."""
ENTRY: Final = Format("entries", written=2, oldest=1, newest=2)
"""The form of all entries: 1 is plain msgpack, without a mark; 2 is encrypted. The mark of others has their version."""
KEYS: Final = Format("keys", written=1, oldest=1, newest=1)
"""Leases, groups, channels and work queues in the store, with the scripts that read and write them."""

FORMATS: Final = (CONNECT_REQUEST, PAYLOAD, ENTRY, KEYS)


def published() -> dict[str, Any]:
    """Return what a process publishes: its release and its formats."""
    return {"release": RELEASE, "formats": {each.name: each[1:] for each in FORMATS}}


def disagreement(process: str, its: Mapping[str, Any]) -> str | None:
    """Return why this process and another one do not understand each other; None if they do.

    Args:
        process: The name of the other process.
        its: What the other process has published.
    """
    formats = its.get("formats", {})
    for ours in FORMATS:
        theirs = formats.get(ours.name)
        if theirs is None:
            continue  # a kind that the other release does not have
        written, oldest, newest = theirs
        if ours.reads(written) and oldest <= ours.written <= newest:
            continue
        older = process if written < ours.oldest or ours.written > newest else "this process"
        return (
            f"{process} is of asgibus {its.get('release')!s:.20} and this process of asgibus {RELEASE}, which do not "
            f"understand each other: {ours.name} have version {written} there and {ours.written} here. Upgrade "
            f"{older}, in steps that neighbouring releases take, or give one of the two its own --prefix"
        )
    return None
