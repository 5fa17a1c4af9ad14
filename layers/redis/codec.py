"""Entries in Redis: packed, and encrypted if the layer has encryption keys.

Every entry belongs to a place: the Redis key of its mailbox, work queue or ordinary channel. An entry that is stored
elsewhere meanwhile (delayed, taken, kept for redelivery) still belongs to the place that it came from.

The package msgspec packs in a third of the time of msgpack, which unpacks faster.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, Protocol

import msgpack
from msgspec.msgpack import Encoder

from asgibus.layers.codec import unpack_message
from asgibus.layers.compiling import mypyc_attr
from asgibus.layers.contract import Message
from asgibus.layers.names import require_channel
from asgibus.layers.versions import ENTRY, ForeignVersion

logger = logging.getLogger("asgibus.layers")

MARK: Final = b"\xc1\x02"  # begins an encrypted entry, as no msgpack does. The second byte is the version of the form
FIRST_BYTE: Final = MARK[:1]
KEY_ID: Final = slice(2, 6)  # where an encrypted entry names its key
DAMAGED_LINES = 100  # damaged entries that are logged one by one; whoever writes more of them does not fill the log
FOREIGN_KEYS = 16  # keys of other processes that are logged one by one, for the same reason

FIRST_PAUSE = 1.0  # seconds; doubled each time no entry of a batch could be read
LONGEST_PAUSE = 30.0  # seconds; also how late it is noticed that entries can be read again
MOST_IN_A_ROW = 3  # unreadable batches that prove nothing, once this process has read something
MOST_RELEASES = 20  # of one entry: then no process can read it, and it is dropped


@mypyc_attr(native_class=False)
class NotSealed(ValueError):
    """The entry is not encrypted, though this layer has encryption keys."""


@mypyc_attr(native_class=False)
class UnknownKey(ValueError):
    """The entry is encrypted with a key that this process does not have."""

    def __init__(self, key_id: str) -> None:
        """Name the key by its id, 8 hexadecimal digits."""
        super().__init__(key_id)
        self.key_id = key_id


class Encryption(Protocol):
    """A cipher for entries: see `encryption.Encryptor`."""

    @property
    def key_ids(self) -> Sequence[str]: ...

    def encrypt(self, place: str, data: bytes) -> bytes: ...

    def decrypt(self, place: str, data: bytes) -> bytes: ...


def _plain(value: Any) -> Any:
    """Convert an instance of a subclass, such as a string marked as safe HTML, to its base class."""
    for base in _BASES:
        if isinstance(value, base):
            return base(value)
    raise TypeError(f"cannot be put in a message: a {type(value).__name__}")


_BASES: Final[tuple[type[Any], ...]] = (str, bytes, int, float)
_encode: Final = Encoder(enc_hook=_plain).encode


class EntryCodec:
    """Pack, encrypt, decrypt and unpack the entries of one layer. Methods may be called from any thread."""

    def __init__(self, encryptor: Encryption | None, counts: Counter[str]) -> None:
        self._counts = counts
        self._encryptor = encryptor
        self._foreign: set[str] = set()
        self._logged: set[str] = set()

    def pack(self, place: str, value: Any) -> bytes:
        """Return a value that asgibus has made as an entry of a place.

        Only values without sets, datetimes and other types that msgpack does not know may be passed: they are not
        refused.

        Raises:
            TypeError: An integer has over 64 bits, or a value is of a type that cannot be packed.
        """
        try:
            packed = _encode(value)
        except (OverflowError, ValueError) as error:
            raise TypeError(f"cannot be put in a message: {error}") from error
        return packed if self._encryptor is None else self._encryptor.encrypt(place, packed)

    def seal(self, place: str, packed: bytes) -> bytes:
        """Return a packed value as an entry of a place."""
        return packed if self._encryptor is None else self._encryptor.encrypt(place, packed)

    def unpack(self, place: str, data: bytes) -> Any:
        """Return the value of an entry, with tuples for arrays. Raises ValueError, which `log_rejected` takes."""
        packed = self.open(place, data)
        try:
            return msgpack.unpackb(packed, use_list=False, raw=False, strict_map_key=False)
        except (ValueError, TypeError, msgpack.UnpackException) as error:
            raise ValueError(f"not a message: {error}") from error

    def unpack_message(self, place: str, data: bytes) -> Message:
        """Return the message of an entry that holds nothing else. Raises ValueError, which `log_rejected` takes."""
        return unpack_message(self.open(place, data))

    def count_foreign(self, error: Exception) -> str | None:
        """Count an entry that other processes may be able to read.

        Returns:
            Why this process cannot read the entry, and what to do; None for a damaged entry.
        """
        if isinstance(error, NotSealed):
            self._counts["entry not sealed"] += 1
            why = "it is not sealed: give whoever wrote it the encryption key, too"
        elif isinstance(error, UnknownKey):
            self._counts["entry of unknown key"] += 1
            key = error.key_id
            why = f"it is sealed with the key {key}: give this process that encryption key, too, behind its first"
        elif isinstance(error, ForeignVersion):
            self._counts["foreign version"] += 1
            return str(error)
        else:
            return None
        return f"{why} (known here: {'none' if self._encryptor is None else ', '.join(self._encryptor.key_ids)})"

    def log_rejected(self, place: str, entry_id: str, error: Exception) -> None:
        """Count and log that an entry was dropped. For each key of other processes there is one log line."""
        why = self.count_foreign(error)
        if why is None:
            self._counts["damaged entry"] += 1
            if self._counts["damaged entry"] <= DAMAGED_LINES:
                logger.error("%s: entry %s was dropped: %s", place, entry_id, error)
            elif self.mark_logged("damaged entry"):
                logger.error("%d damaged entries were dropped; later ones are counted", DAMAGED_LINES)
            return
        key = error.key_id if isinstance(error, UnknownKey) else "" if isinstance(error, NotSealed) else why
        if key not in self._foreign and len(self._foreign) < FOREIGN_KEYS:
            self._foreign.add(key)
            logger.error("%s: entry %s was dropped, as all like it will be: %s", place, entry_id, why)

    def valid_names(
        self, place: str, found: Iterable[bytes], rule: Callable[[object], object] = require_channel
    ) -> list[str]:
        """Return the valid names that were found in a Redis key; skip the others, which are counted and logged once.

        Args:
            place: The key, for the log.
            found: The names.
            rule: Raises TypeError for an invalid name.
        """
        names = []
        for each in found:
            try:
                name = each.decode()
                rule(name)
            except (UnicodeDecodeError, TypeError, AttributeError):
                self.log_unexpected("odd name", place, f"{each!r:.200} in it is no name")
            else:
                names.append(name)
        return names

    def mark_logged(self, kind: str) -> bool:
        """Note that a line of this kind is logged. Return whether the line is the first: later ones are not logged."""
        first = kind not in self._logged
        self._logged.add(kind)
        return first

    def log_unexpected(self, kind: str, place: str, problem: str) -> None:
        """Count something in Redis that no process of this bus has written; log the first of each kind."""
        self._counts[kind] += 1
        if self.mark_logged(kind):
            logger.error("%s: %s; something else writes to the keys of this prefix. Others are counted", place, problem)

    def open(self, place: str, data: bytes) -> bytes:
        """Return the packed value of an entry. Raises ValueError, which `log_rejected` takes."""
        if self._encryptor is None and not data.startswith(FIRST_BYTE):
            return data
        if data.startswith(FIRST_BYTE) and len(data) > 1 and not ENTRY.reads(data[1]):
            raise ENTRY.refuse(data[1], "whoever wrote them")
        if self._encryptor is not None:
            return self._encryptor.decrypt(place, data)
        if len(data) >= KEY_ID.stop:
            raise UnknownKey(data[KEY_ID.start : KEY_ID.stop].hex())
        return data


class Unreadable:
    """Decide for how long a process claims nothing because it cannot read entries.

    Entries that a process cannot read (encrypted with a key that it does not have, or of another version) are released
    for other processes. If the process went on, it would claim them again and again, faster than processes that are
    busy. So it pauses, unless it has read other entries: then whoever writes the unreadable ones is at fault.
    """

    def __init__(self) -> None:
        self.why: str | None = None
        """Why the process claims nothing, or nearly nothing; None while it can read."""
        self._in_a_row = 0
        self._has_read = False

    def on_read(self) -> None:
        """Note that an entry of a batch could be read."""
        self._in_a_row = 0
        self._has_read = True
        if self.why is not None:
            self.why = None
            logger.warning("this process can read the entries that it claims again")

    def on_unreadable_batch(self, place: str, why: str) -> float:
        """Note that no entry of a batch could be read.

        Args:
            place: The channel of the batch, for the log.
            why: Why its last entry cannot be read, and what to do.

        Returns:
            For how many seconds to claim nothing.
        """
        self._in_a_row += 1
        allowed = MOST_IN_A_ROW if self._has_read else 1
        if self._in_a_row < allowed:
            return 0.0
        if self.why is None:
            logger.error(
                "%s: this process cannot read an entry that it claims: %s. Such entries are given back for others, and "
                "this process claims next to nothing until it can read again",
                place,
                why,
            )
        self.why = f"entries on {place} cannot be read here: {why}"
        return float(min(FIRST_PAUSE * 2.0 ** (self._in_a_row - allowed), LONGEST_PAUSE))
