"""The keys of requests, as `--affinity` finds them."""

from types import SimpleNamespace

import pytest

from asgibus.interface_server.affinity import digest, find_key, parse_rules


def key(*rules: str, path: str = "/", query: bytes = b"", **headers: bytes) -> bytes | None:
    """Return the key of a request by these rules."""
    pairs = [(name.replace("_", "-").encode(), value) for name, value in headers.items()]
    head = SimpleNamespace(query_string=query, headers=pairs)
    found = find_key(parse_rules(rules), path.encode(), head)
    return None if found is None else digest(found[1])


@pytest.mark.parametrize(
    ("pattern", "path", "ids"),
    [
        ("/ws/{room}", "/ws/lobby", (b"room", b"lobby")),
        ("/ws/{room}", "/ws/lobby/history", (b"room", b"lobby")),
        ("/ws/{room}", "/ws/lobby/", (b"room", b"lobby")),
        ("/ws/{room}", "/ws/café/", (b"room", "café".encode())),
        ("/ws/{room}", "/ws/", None),
        ("/ws/{room}", "/wss/lobby", None),
        ("/ws/{room}", "/a/ws/lobby", None),
        ("/ws/{room}.json", "/ws/lobby.json", (b"room", b"lobby")),
        ("/ws/{room}.json", "/ws/lobby.jsonp", None),
        ("/{org}/ws/{room}", "/acme/ws/1", (b"org", b"acme", b"room", b"1")),
        ("/rooms/{room}/", "/rooms/1/say", (b"room", b"1")),
        ("/rooms/{room}/", "/rooms/1", None),
        ("/ws/{org}-{room}", "/ws/a-b-c", (b"org", b"a", b"room", b"b-c")),
        ("/ws/{org}-{room}", "/ws/-a-b", (b"org", b"-a", b"room", b"b")),
        ("/ws/{org}--{room}.json", "/ws/a-b--c.json", (b"org", b"a-b", b"room", b"c")),
        ("/ws/{org}-{room}.json", "/ws/" + 60_000 * "-" + "x", None),  # this took two minutes
        ("/ws/{org}-{room}-{seat}.json", "/ws/" + 60_000 * "-" + "x", None),
    ],
)
def test_the_parameters_of_a_path(pattern: str, path: str, ids: tuple[bytes, ...] | None) -> None:
    assert key(f"path:{pattern}", path=path) == (None if ids is None else digest(ids))


@pytest.mark.parametrize(
    ("query", "value"),
    [
        (b"sid=1", b"1"),
        (b"a=2&sid=1", b"1"),
        (b"sid=a%20b", b"a b"),
        (b"sid=a+b", b"a b"),
        (b"sid=1&sid=2", b"1"),
        (b"asid=1", None),
        (b"sid=", None),
        (b"sid", None),
        (b"", None),
    ],
)
def test_a_parameter_of_the_query(query: bytes, value: bytes | None) -> None:
    assert key("query:sid", query=query) == (None if value is None else digest((b"sid", value)))


def test_a_header() -> None:
    found = key("header:X-Room", x_room=b" lobby ")
    assert found == digest((b"x-room", b"lobby"))
    assert key("header:X-Room", x_rooms=b"lobby") is None
    assert key("header:X-Room", x_room=b"") is None


@pytest.mark.parametrize("cookies", [b"id=7", b"a=1; id=7", b"a=1;id=7", b'id="7"; a=1', b"id=7;"])
def test_a_cookie(cookies: bytes) -> None:
    assert key("cookie:id", cookie=cookies) == digest((b"id", b"7"))


@pytest.mark.parametrize("cookies", [b"", b"sid=7", b"a=id=7", b"id=", b"id"])
def test_no_cookie(cookies: bytes) -> None:
    assert key("cookie:id", cookie=cookies) is None


def test_a_rule_is_for_the_paths_of_its_prefix() -> None:
    rule = "/chat=query:room"
    assert key(rule, path="/chat/1", query=b"room=a") == key("query:room", query=b"room=a")
    assert key(rule, path="/other", query=b"room=a") is None


def test_the_first_rule_that_finds_a_key_counts() -> None:
    rules = ("header:x-user", "cookie:id")
    assert key(*rules, cookie=b"id=1") == digest((b"id", b"1"))
    assert key(*rules, cookie=b"id=1", x_user=b"ann") == digest((b"x-user", b"ann"))


def test_one_name_is_one_key_wherever_it_is() -> None:
    assert key("path:/ws/{room}", path="/ws/1") == key("query:room", query=b"room=1") != key("query:r", query=b"r=1")


def test_two_parameters_without_a_text_between_them_are_refused() -> None:
    with pytest.raises(ValueError, match="two parameters without a text between them"):
        parse_rules(("path:/ws/{org}{room}",))


@pytest.mark.parametrize(
    ("value", "ids"),
    [
        (b"a", (b"x-id", b"a")),
        (b"  a b  ", (b"x-id", b"a b")),
        (b"  ", None),
        (b"a" + 200_000 * b" " + b"b", (b"x-id", b"a" + 200_000 * b" " + b"b")),  # this took two minutes
    ],
)
def test_an_id_in_a_header_of_the_answer(value: bytes, ids: tuple[bytes, ...] | None) -> None:
    (rule,) = parse_rules(("learn:header:X-Id",))
    assert rule.learn is not None
    assert rule.learn.find(b"\nx-other: b\r\nx-id: %b\r\n" % value) == ids
