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
    "is not of the form [/path/prefix=]KEY, where KEY is path:/pattern/{name}, cookie:NAME, header:NAME, query:NAME "
    "(these three also with learn: before them) or sticky:NAME"
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
class Learn:
    """The place of an id in an answer: a header, or the body."""

    name: bytes
    in_header: re.Pattern[bytes] | None = None
    """Finds the id in header lines behind a line feed; None if it is in the body."""
    in_body: re.Pattern[bytes] | None = None

    def find(self, text: bytes) -> Ids | None:
        """Return the ids in header lines, or in a part of a body; None if there are none."""
        pattern = self.in_header or self.in_body
        assert pattern is not None
        found = pattern.search(text)
        return None if found is None else (self.name, found[1].rstrip(b" "))


@dataclass(frozen=True, slots=True)
class AffinityRule:
    """A value of `--affinity`."""

    prefix: bytes
    """The beginning of the paths that the rule is for."""
    find: Find
    learn: Learn | None = None
    """Finds an id that the app has made in its answer to a request without a key."""
    cookie: bytes = b""
    """The name of the cookie that the interface server sets if a request has no key; empty for none."""


def parse_rules(values: tuple[str, ...]) -> tuple[AffinityRule, ...]:
    """Return the rule of each `[/path/prefix=]KEY`.

    Raises:
        ValueError: A value is not valid; the text says why.
    """
    return tuple(_parse(value) for value in values)


def find_key(rules: Sequence[AffinityRule], path: bytes, head: Head) -> tuple[AffinityRule, Ids] | None:
    """Return the ids of a request and the first rule that finds them; None if there is none.

    Args:
        rules: The rules.
        path: The path, as the app sees it.
        head: The head of the request.
    """
    for rule in rules:
        if path.startswith(rule.prefix) and (ids := rule.find(path, head)) is not None:
            return rule, ids
    return None


def digest(ids: Ids) -> bytes:
    """Return the key of ids, as the layer has it."""
    return blake2b(b"".join([b"%d:%b" % (len(each), each) for each in ids]), digest_size=DIGEST_BYTES).digest()


def _parse(value: str) -> AffinityRule:
    prefix, mark, key = value.rpartition("=") if value.startswith("/") else ("", "", value)
    learns = key.startswith("learn:")
    source, colon, name = key.removeprefix("learn:").partition(":")
    if not colon or not name or (value.startswith("/") and not mark):
        raise ValueError(f"{value!r} {_FORM}")
    learn = None
    cookie = name.encode() if source == "sticky" else b""
    if source == "path" and not learns:
        find = _path(name)
    elif source not in _SOURCES or (learns and source not in _LEARNS):
        raise ValueError(f"{value!r} {_FORM}")
    elif not _TOKEN.match(name):
        raise ValueError(f"{name!r} in {value!r} is not a name: use letters, digits, '-', '_' and '.'")
    else:
        find = _SOURCES[source](name)
        learn = _LEARNS[source](name) if learns else None
    return AffinityRule(prefix.encode(), find, learn, cookie)


def _path(pattern: str) -> Find:
    """Find the parameters of a path that begins with a pattern, in which each stands for a part of one segment.

    Of several in one segment, each ends where the text behind it is found first. Otherwise the time to match a path
    would grow with the square of its length, and the client chooses that.
    """
    pieces = _PARAMETER.split(pattern)  # texts and names, in turns
    texts, names = pieces[::2], [name.encode() for name in pieces[1::2]]
    if not pattern.startswith("/") or not names or any(set(text) & set("{}") for text in texts):
        raise ValueError(f"{pattern!r} is not a pattern such as /ws/{{room}}")
    if len({*names}) < len(names):
        raise ValueError(f"{pattern!r} has two parameters of one name")
    escaped = [re.escape(text.encode()) for text in texts]
    expression = escaped[0]
    for text, behind in zip(texts[1:-1], escaped[1:-1], strict=True):
        if not text:
            raise ValueError(f"{pattern!r} has two parameters without a text between them")
        expression += (rb"([^/]+)" if "/" in text else rb"([^/](?:(?!%b)[^/])*+)" % behind) + behind
    expression += rb"([^/]+)" + escaped[-1]
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


_SOURCES: Final[dict[str, Callable[[str], Find]]] = {
    "cookie": _cookie,
    "header": _header,
    "query": _query,
    "sticky": _cookie,
}


def _learn_header(name: str) -> Learn:
    lower = name.lower().encode()
    return Learn(lower, in_header=re.compile(rb"\n%b: *([^\r ][^\r]*)" % re.escape(lower)))


def _learn_cookie(name: str) -> Learn:
    encoded = name.encode()
    return Learn(encoded, in_header=re.compile(rb'\nset-cookie: *%b="?([^;"\r]+)' % re.escape(encoded)))


def _learn_body(name: str) -> Learn:
    """Find `"name": "value"` of JSON or a script, and `name=value` of a link."""
    encoded = name.encode()
    quote = rb"(?:\\?[\"']|&quot;|&\#34;)?"
    value = rb"([A-Za-z0-9._~-]{4,256})(?=[^A-Za-z0-9._~-])"
    return Learn(
        encoded,
        in_body=re.compile(rb"(?<![A-Za-z0-9_-])%b%b\s*[=:]\s*%b%b" % (re.escape(encoded), quote, quote, value)),
    )


_LEARNS: Final[dict[str, Callable[[str], Learn]]] = {
    "cookie": _learn_cookie,
    "header": _learn_header,
    "query": _learn_body,
}
