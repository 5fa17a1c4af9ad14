"""How entries stand in Redis: packed, and sealed if this process has encryption keys; and what is said of the others.

Every entry belongs to a place: the Redis key of its mailbox, shared channel or ordinary channel. What is put aside
(delayed, taken, kept to be sent again) goes back to the same place.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from asgibus.layers.codec import pack, unpack, unpack_message
from asgibus.layers.contract import Message
from asgibus.layers.names import require_channel

if TYPE_CHECKING:
    from asgibus.layers.redis.sealing import Seal

logger = logging.getLogger("asgibus.layers")

MARK = b"\xc1\x02"  # begins a sealed entry; no msgpack begins so. The second byte is the version of the seal
KEY_ID = slice(2, 6)  # where such an entry names its key
DAMAGED_LINES = 100  # that are written of damaged entries, for the same reason
FOREIGN_KEYS = 16  # that are logged one by one: whoever makes up more of them does not fill the log


class NotSealed(ValueError):
    """The entry bears no seal, though there are keys here."""


class UnknownKey(ValueError):
    """The entry is sealed with a key that is not known here; `key_id` names it, as 8 hexadecimal digits."""

    def __init__(self, key_id: str) -> None:
        super().__init__(key_id)
        self.key_id = key_id


class Entries:
    """Packs, seals, opens and unpacks the entries of one layer; it may be used from any thread."""

    def __init__(self, encryption_keys: Sequence[str | bytes], counts: Counter[str]) -> None:
        """Raises ValueError for keys that are none, or when what is needed to use them is not installed."""
        self._counts = counts
        self._seal = _seal(encryption_keys)
        self._foreign: set[str] = set()
        self._told: set[str] = set()

    def pack(self, place: str, value: Any) -> bytes:
        """`value` as an entry of that place. Raises TypeError as `codec.pack`."""
        return self.seal(place, pack(value))

    def seal(self, place: str, packed: bytes) -> bytes:
        """What is packed, as an entry of that place."""
        return packed if self._seal is None else self._seal.seal(place, packed)

    def unpack(self, place: str, data: bytes) -> Any:
        """What an entry of that place holds. Raises ValueError, which is for `refused`."""
        return unpack(self._open(place, data))

    def unpack_message(self, place: str, data: bytes) -> Message:
        """The same for an entry that holds a message and nothing else."""
        return unpack_message(self._open(place, data))

    def foreign(self, error: Exception) -> str | None:
        """Count an entry that others may be able to read; return why this process cannot, or None for a damaged one."""
        if isinstance(error, NotSealed):
            self._counts["entry not sealed"] += 1
            why = "it is not sealed: give whoever wrote it the encryption key, too"
        elif isinstance(error, UnknownKey):
            self._counts["entry of unknown key"] += 1
            key = error.key_id
            why = f"it is sealed with the key {key}: give this process that encryption key, too, behind its first"
        else:
            return None
        return f"{why} (known here: {'none' if self._seal is None else ', '.join(self._seal.key_ids)})"

    def refused(self, place: str, entry_id: str, error: Exception) -> None:
        """Count and log that an entry was dropped. What comes of peers with another key is logged once for each key."""
        why = self.foreign(error)
        if why is None:
            self._counts["damaged entry"] += 1
            if self._counts["damaged entry"] <= DAMAGED_LINES:
                logger.error("%s: entry %s was dropped: %s", place, entry_id, error)
            elif self.is_first("damaged entry"):
                logger.error("%d damaged entries were dropped; later ones are counted", DAMAGED_LINES)
            return
        key = error.key_id if isinstance(error, UnknownKey) else ""
        if key not in self._foreign and len(self._foreign) < FOREIGN_KEYS:
            self._foreign.add(key)
            logger.error("%s: entry %s was dropped, as all like it will be: %s", place, entry_id, why)

    def names(
        self, place: str, found: Iterable[bytes], rule: Callable[[object], object] = require_channel
    ) -> list[str]:
        """Return the names that were found in a key of Redis; what is no name is skipped, counted, and logged once.

        Args:
            place: The key, for people to read.
            found: What was found there.
            rule: Raises TypeError for what is no name.
        """
        names = []
        for each in found:
            try:
                name = each.decode()
                rule(name)
            except (UnicodeDecodeError, TypeError, AttributeError):
                self.odd("odd name", place, f"{each!r:.200} in it is no name")
            else:
                names.append(name)
        return names

    def is_first(self, kind: str) -> bool:
        """Return whether this is asked for the first time of that kind: what is to be said once is said then."""
        first = kind not in self._told
        self._told.add(kind)
        return first

    def odd(self, kind: str, place: str, what: str) -> None:
        """Count something in Redis that none of our processes has written; log the first of each kind."""
        self._counts[kind] += 1
        if self.is_first(kind):
            logger.error("%s: %s; something else writes to the keys of this prefix. Others are counted", place, what)

    def _open(self, place: str, data: bytes) -> bytes:
        if self._seal is not None:
            return self._seal.open(place, data)
        if data.startswith(MARK) and len(data) >= KEY_ID.stop:
            raise UnknownKey(data[KEY_ID].hex())
        return data


def _seal(encryption_keys: Sequence[str | bytes]) -> Seal | None:
    if isinstance(encryption_keys, str | bytes):
        raise ValueError("encryption keys are a list of secrets, of which the first encrypts")
    if not encryption_keys:
        return None
    try:
        from asgibus.layers.redis.sealing import Seal  # noqa: PLC0415  # only who has keys needs its library
    except ImportError:
        raise ValueError("encryption keys need the package cryptography: pip install 'asgibus[encryption]'") from None
    return Seal(encryption_keys)
