"""The connect request, and the scope that a worker builds from the request."""

from typing import Any, get_type_hints

import pytest

from asgibus.cli.version import FORM
from asgibus.layers.codec import pack, unpack
from asgibus.layers.versions import CONNECT_REQUEST, ForeignVersion
from asgibus.protocol.channels import require_pool, require_protocol, shared_channel, shared_channels
from asgibus.protocol.checks import read_request
from asgibus.protocol.connect_request import (
    FIELD_TYPES,
    HTTP,
    REQUEST_VERSION,
    WEBSOCKET,
    ConnectRequest,
    build_scope,
    reply_channel,
    unpack_request,
)
from asgibus.protocol.events import REQUEST_END


def opening(**fields: Any) -> ConnectRequest:
    values: dict[str, Any] = {
        "version": REQUEST_VERSION,
        "interface": "interface.1!",
        "connection": 7,
        "attempt": 1,
        "resumed": False,
        "handled": 0,
        "window": 1000,
        "kind": HTTP,
        "http_version": "1.1",
        "method": "POST",
        "scheme": "https",
        "raw_path": b"/a%20b/%C3%BC",
        "query_string": b"q=%20",
        "root_path": "",
        "headers": ((b"host", b"h"), (b"x", b"1"), (b"x", b"2")),
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
        "subprotocols": (),
        "extensions": {"tls": {"tls_version": None}},
        "expects_continue": False,
        "events": ((REQUEST_END, b"body"),),
        "state": b"",
    }
    return ConnectRequest(**(values | fields))


def test_a_connect_request_is_unchanged_by_packing() -> None:
    request = opening()
    assert read_request(unpack(pack(tuple(request)))) == request
    assert unpack_request(pack(tuple(request))) == request


def test_a_request_is_unpacked_with_the_types_of_its_fields() -> None:
    if FORM != "compiled":  # mypyc keeps the names of types alone
        declared = [*get_type_hints(ConnectRequest).values()]
        assert [*FIELD_TYPES[:-1]] == declared[:-1], "a scope is not unpacked with its type"
    assert type(unpack_request(pack(tuple(opening())))) is ConnectRequest


@pytest.mark.parametrize(
    "packed",
    [
        pack(tuple(opening(window="1000"))),
        pack(tuple(opening(raw_path="/"))),
        pack(tuple(opening(headers=((b"host", 5),)))),
        pack(tuple(opening(kind="udp", scope={"client": ("127.0.0.1", 1)}))),
        pack((*opening(), "of a later release")),
        pack((REQUEST_VERSION + 1, "of a later version")),
        pack(5),
    ],
)
def test_other_entries_are_unpacked_as_they_are(packed: bytes) -> None:
    assert unpack_request(packed) == unpack(packed)
    assert type(unpack_request(packed)) is not ConnectRequest


def test_a_damaged_entry_is_refused() -> None:
    with pytest.raises(ValueError, match="not a message"):
        unpack_request(pack(tuple(opening()))[:-3])


def test_an_http_scope() -> None:
    assert build_scope(opening()) == {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "https",
        "path": "/a b/\u00fc",
        "raw_path": b"/a%20b/%C3%BC",
        "query_string": b"q=%20",
        "root_path": "",
        "headers": [(b"host", b"h"), (b"x", b"1"), (b"x", b"2")],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
        "extensions": {"tls": {"tls_version": None}},
    }


def test_a_websocket_scope() -> None:
    scope = build_scope(opening(kind=WEBSOCKET, method="GET", scheme="wss", subprotocols=("a", "b")))
    assert (scope["type"], scope["scheme"], scope["subprotocols"]) == ("websocket", "wss", ["a", "b"])
    assert "method" not in scope


def test_the_scope_of_another_protocol_comes_from_its_terminator() -> None:
    terms = {"type": "http", "client": ("::1", 1), "server": ("::1", 2), "extensions": {"x": {}}}
    scope = build_scope(opening(kind="udp", scope=terms))
    assert scope == {**terms, "type": "udp", "asgi": {"version": "3.0"}}
    scope["extensions"]["asgibus"] = {}
    assert terms["extensions"] == {"x": {}}, "an extension is shared between scopes"
    assert build_scope(opening(kind="line", scope={})) == {"type": "line", "asgi": {"version": "3.0"}, "extensions": {}}


@pytest.mark.parametrize(
    ("raw_path", "path"),
    [
        (b"/", "/"),
        (b"/a%2Fb", "/a/b"),
        (b"/%", "/%"),
        (b"/%zz", "/%zz"),
        (b"/%FF", "/\ufffd"),
        (b"/\xc3\xbc", "/\u00fc"),
        (b"/a+b", "/a+b"),
        (b"/a//../b", "/a//../b"),
    ],
)
def test_paths(raw_path: bytes, path: str) -> None:
    scope = build_scope(opening(raw_path=raw_path))
    assert (scope["path"], scope["raw_path"]) == (path, raw_path)


def test_a_root_path_is_part_of_the_path() -> None:
    scope = build_scope(opening(raw_path=b"/a%20b", root_path="/mounted"))
    assert (scope["root_path"], scope["path"], scope["raw_path"]) == ("/mounted", "/mounted/a b", b"/mounted/a%20b")


def test_scopes_of_one_connect_request_share_no_mutable_part() -> None:
    request = opening()
    first, second = build_scope(request), build_scope(request)
    first["headers"].append((b"a", b"b"))
    first["extensions"]["new"] = {}
    assert second == build_scope(request)


@pytest.mark.parametrize(
    "entry",
    [
        *(None, 5, b"", (), ("1", 2), (None,), {"version": 1}, list(opening()), tuple(opening())[:-1]),
        *(tuple(opening(version=version)) for version in (None, "1", True, 2.0)),
    ],
)
def test_invalid_connect_requests(entry: Any) -> None:
    with pytest.raises(ValueError, match="not a connect request"):
        read_request(entry)


@pytest.mark.parametrize("version", [0, CONNECT_REQUEST.oldest - 1, CONNECT_REQUEST.newest + 1])
@pytest.mark.parametrize("fields", [1, 5, len(ConnectRequest._fields), len(ConnectRequest._fields) + 1])
def test_connect_requests_of_other_versions_are_refused(version: int, fields: int) -> None:
    entry = (*opening(version=version), "new")[:fields]
    writer = "interface.1!" if fields > 1 else "whoever wrote them"
    to_upgrade = "this process" if version > CONNECT_REQUEST.newest else writer
    with pytest.raises(ForeignVersion, match=f"have version {version}, where .*: upgrade {to_upgrade},"):
        read_request(entry)


def test_fields_that_a_later_release_has_added_are_ignored() -> None:
    request = opening(extensions={"asgibus": {"new": 1}})
    assert read_request((*request, "new", 5)) == request
    assert read_request(unpack_request(pack((*request, "new", 5)))) == request


def test_the_reply_channel() -> None:
    assert reply_channel("interface.1!", 7) == "interface.1!7"


def test_shared_channels_of_a_pool() -> None:
    assert shared_channels("default") == ("http.request.default", "websocket.connect.default")
    assert shared_channel(WEBSOCKET, "chat") == "websocket.connect.chat"


def test_shared_channels_of_further_protocols() -> None:
    assert shared_channels("p", ["udp", "line"])[2:] == ("udp.connect.p", "line.connect.p")
    assert len(shared_channel("x" * 9, "y" * 82)) == 100


@pytest.mark.parametrize("name", ["udp", "line", "a", "x-1", "x" * 9])
def test_good_protocols(name: str) -> None:
    assert require_protocol(name) == name


@pytest.mark.parametrize("name", ["", "UDP", "1a", "a.b", "a b", "a\n", "x" * 10, "http", "websocket", "lifespan"])
def test_bad_protocols(name: str) -> None:
    with pytest.raises(ValueError, match="protocol"):
        require_protocol(name)


@pytest.mark.parametrize("pool", ["default", "a.b-c_1", "x" * 82])
def test_good_pools(pool: str) -> None:
    assert require_pool(pool) == pool


@pytest.mark.parametrize("pool", ["", "a b", "a\n", "a!", "!", "\u00e9", "a/b", "x" * 83])
def test_bad_pools(pool: str) -> None:
    with pytest.raises(ValueError, match="pool"):
        require_pool(pool)
