"""The rules of `--affinity`: which part of a request is the key by which all connections with it go to one worker.

A key is the name and the value of an id, wherever a request has it: `path:/ws/{room}` and `query:room` find the same
key in `/ws/lobby` and `/say?room=lobby`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final, Protocol
from urllib.parse import unquote_to_bytes

DIGEST_BYTES: Final = 16
"""The size of a key in the layer, which must not hold the cookies of clients."""

_TOKEN: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+\Z")  # RFC 9110 section 5.6.2
_PARAMETER: Final = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")
_FORM: Final = (
    "is not of the form [/path/prefix=]KEY, where KEY is path:/pattern/{name}, cookie:NAME, header:NAME or query:NAME"
)

Ids = tuple[bytes, ...]
"""Names and values, in turns."""


class Head(Protocol):
    """The head of a request, as far as a key may be in it."""

    @property
    def query_string(self) -> bytes: ...

    @property
    def headers(self) -> Sequence[tuple[bytes, bytes]]: ...


Find = Callable[[bytes, Head], "Ids | None"]
"""Return the ids of a request with this path, or None if it has none."""


@dataclass(frozen=True, slots=True)
class AffinityRule:
    """A value of `--affinity`."""

    prefix: bytes
    """The beginning of the paths that the rule is for."""
    find: Find


def parse_rules(values: tuple[str, ...]) -> tuple[AffinityRule, ...]:
    """Return the rule of each `[/path/prefix=]KEY`.

    Raises:
        ValueError: A value is not valid; the text says why.
    """
    return tuple(_parse(value) for value in values)


def find_digest(rules: Sequence[AffinityRule], path: bytes, head: Head) -> bytes | None:
    """Return the key of a request, by the first rule that finds one; None if there is none.

    Args:
        rules: The rules.
        path: The path, as the app sees it.
        head: The head of the request.
    """
    for rule in rules:
        if path.startswith(rule.prefix) and (ids := rule.find(path, head)) is not None:
            return digest(ids)
    return None


def digest(ids: Ids) -> bytes:
    """Return the key of ids, as the layer has it."""
    return blake2b(b"".join([b"%d:%b" % (len(each), each) for each in ids]), digest_size=DIGEST_BYTES).digest()


def _parse(value: str) -> AffinityRule:
    prefix, mark, key = value.rpartition("=") if value.startswith("/") else ("", "", value)
    source, colon, name = key.partition(":")
    if not colon or not name or (value.startswith("/") and not mark):
        raise ValueError(f"{value!r} {_FORM}")
    if source == "path":
        find = _path(name)
    elif source not in _SOURCES:
        raise ValueError(f"{value!r} {_FORM}")
    elif not _TOKEN.match(name):
        raise ValueError(f"{name!r} in {value!r} is not a name: use letters, digits, '-', '_' and '.'")
    else:
        find = _SOURCES[source](name)
    return AffinityRule(prefix.encode(), find)


def _path(pattern: str) -> Find:
    """Find the parameters of a path that begins with a pattern, in which each stands for a part of one segment."""
    pieces = _PARAMETER.split(pattern)  # texts and names, in turns
    texts, names = pieces[::2], [name.encode() for name in pieces[1::2]]
    if not pattern.startswith("/") or not names or any(set(text) & set("{}") for text in texts):
        raise ValueError(f"{pattern!r} is not a pattern such as /ws/{{room}}")
    if len({*names}) < len(names):
        raise ValueError(f"{pattern!r} has two parameters of one name")
    expression = b"([^/]+)".join([re.escape(text.encode()) for text in texts])
    match = re.compile(expression + (b"" if pattern.endswith("/") else rb"(?=/|\Z)")).match

    def find(path: bytes, head: Head) -> Ids | None:
        found = match(path)
        if found is None:
            return None
        return tuple([each for pair in zip(names, found.groups(), strict=True) for each in pair])

    return find


def _query(name: str) -> Find:
    """Find a parameter of the query string."""
    search = re.compile(rb"(?:\A|&)%b=([^&]+)" % re.escape(name.encode())).search
    encoded = name.encode()

    def find(path: bytes, head: Head) -> Ids | None:
        found = search(head.query_string)
        return None if found is None else (encoded, unquote_to_bytes(found[1].replace(b"+", b" ")))

    return find


def _header(name: str) -> Find:
    """Find the first header of a name."""
    encoded = name.lower().encode()

    def find(path: bytes, head: Head) -> Ids | None:
        value = next((value for each, value in head.headers if each == encoded), b"").strip()
        return (encoded, value) if value else None

    return find


def _cookie(name: str) -> Find:
    """Find a cookie."""
    search = re.compile(rb'(?:\A|;)[ \t]*%b=[ \t]*"?([^;" \t]+)' % re.escape(name.encode())).search
    encoded = name.encode()

    def find(path: bytes, head: Head) -> Ids | None:
        for each, value in head.headers:
            if each == b"cookie" and (found := search(value)) is not None:
                return encoded, found[1]
        return None

    return find


_SOURCES: Final[dict[str, Callable[[str], Find]]] = {"cookie": _cookie, "header": _header, "query": _query}
