"""The subject of an X.509 certificate as one string, RFC 4514: `CN=jane,OU=Ops,O=Example`, the nearest first."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

_SEQUENCE_OF_NAMES = 4  # of a certificate's fields, behind the version: serial, signature, issuer, validity, subject
_VERSION = 0xA0
_TYPES = {  # the short names that RFC 4514 section 3 knows; all other types stand as their numbers
    "2.5.4.3": "CN",
    "2.5.4.6": "C",
    "2.5.4.7": "L",
    "2.5.4.8": "ST",
    "2.5.4.9": "STREET",
    "2.5.4.10": "O",
    "2.5.4.11": "OU",
    "0.9.2342.19200300.100.1.1": "UID",
    "0.9.2342.19200300.100.1.25": "DC",
}
_ENCODINGS = {12: "utf-8", 18: "ascii", 19: "ascii", 20: "latin-1", 22: "ascii", 28: "utf-32-be", 30: "utf-16-be"}


def subject_of(certificate: bytes) -> str:
    """The subject of a certificate in DER. Raises ValueError for what is none."""
    try:
        ((_, whole, _),) = _elements(certificate)
        signed = next(_elements(whole))[1]
        fields = [field for field in _elements(signed) if field[0] != _VERSION]
        names = [
            "+".join(_attribute(attribute) for _, attribute, _ in _elements(together))
            for _, together, _ in _elements(fields[_SEQUENCE_OF_NAMES][1])
        ]
    except (IndexError, StopIteration) as error:
        raise ValueError("not a certificate") from error
    return ",".join(reversed(names))


def _elements(data: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """Tag, content and whole encoding of each DER element that stands here."""
    at = 0
    while at < len(data):
        start, tag, length = at, data[at], data[at + 1]
        at += 2
        if length & 0x80:
            size = length & 0x7F
            length = int.from_bytes(data[at : at + size], "big")
            at += size
        if at + length > len(data):
            raise ValueError("not a certificate: an element is cut off")
        yield tag, data[at : at + length], data[start : at + length]
        at += length


def _attribute(attribute: bytes) -> str:
    (_, number, _), (tag, value, encoded) = _elements(attribute)
    dotted = _dotted(number)
    if dotted in _TYPES and tag in _ENCODINGS:
        with suppress(UnicodeDecodeError):  # authorities sign all kinds of things
            return f"{_TYPES[dotted]}={_escaped(value.decode(_ENCODINGS[tag]))}"
    return f"{_TYPES.get(dotted, dotted)}=#{encoded.hex()}"


def _dotted(number: bytes) -> str:
    arcs, arc = [], 0
    for byte in number:
        arc = arc << 7 | byte & 0x7F
        if not byte & 0x80:
            arcs.append(arc)
            arc = 0
    first = min(arcs[0] // 40, 2)
    return ".".join(str(each) for each in (first, arcs[0] - 40 * first, *arcs[1:]))


def _escaped(value: str) -> str:
    text = "".join("\\" + each if each in '"+,;<>\\' else "\\00" if each == "\0" else each for each in value)
    if text[:1] in ("#", " "):
        text = "\\" + text
    if text.endswith(" ") and len(value) > 1:
        text = text[:-1] + "\\ "
    return text
