"""Offsets: the places of entries in a stream."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from asgibus.layers.compiling import mypyc_attr

_OFFSET = re.compile(r"([1-9][0-9]{0,14})-(0|[1-9][0-9]{0,14})\Z", re.ASCII)  # Lua counts exactly up to 2**53


@mypyc_attr(native_class=False)
class Offset(NamedTuple):
    """The place of an entry: `<epoch>-<number>` as text. To apps, offsets are opaque texts.

    Offsets of one stream are ordered as they were appended.
    """

    epoch: int
    """When the stream was begun, in ms by the clock of the store. A stream that is begun anew has a later epoch."""
    number: int
    """The number of the entry in its epoch, from 1."""

    def __str__(self) -> str:
        return f"{self.epoch}-{self.number}" if self.epoch else "0"


BEGINNING: Final = Offset(0, 0)
"""The place in front of all entries, `"0"` as text."""
_GONE: Final = Offset(1, 0)  # of an epoch that never was


def parse_offset(text: object) -> Offset:
    """Return the offset of a text.

    Args:
        text: The text of an offset, or an Offset. None and `"0"` are the beginning.

    Raises:
        ValueError: It is no offset; the error says the form.
    """
    if isinstance(text, Offset):
        return text
    if text is None or text == "0":
        return BEGINNING
    match = _OFFSET.match(text) if isinstance(text, str) else None
    if match is None:
        raise ValueError(f'the offset of a stream is "0" or a text such as "1764541234567-42", not {text!r:.100}')
    return Offset(int(match[1]), int(match[2]))


def client_offset(text: object) -> Offset:
    """Return the offset that a client has named, which may be any text.

    A text that is no offset is taken for one of a stream that is gone: what follows it is a reset, and then all that is
    kept. An empty text is the beginning.

    Raises:
        ValueError: It is neither a text, nor an Offset, nor None: a fault of the app, and not of the client.
    """
    if isinstance(text, str) and text != "0" and _OFFSET.match(text) is None:
        return _GONE if text else BEGINNING
    return parse_offset(text)
