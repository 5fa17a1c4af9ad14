import pytest

from asgibus.interface_server.proxy import TrustedProxies
from asgibus.protocol.opening import Address

PROXY: Address = ("127.0.0.1", 5000)


def headers(*forwarded_for: str, proto: str | None = None) -> list[tuple[bytes, bytes]]:
    lines = [(b"x-forwarded-for", value.encode("latin-1")) for value in forwarded_for]
    return lines if proto is None else [*lines, (b"x-forwarded-proto", proto.encode())]


@pytest.mark.parametrize(
    ("allowed", "forwarded_for", "client"),
    [
        ("127.0.0.1", ["203.0.113.7"], ("203.0.113.7", 0)),
        ("127.0.0.1", ["6.6.6.6, 203.0.113.7"], ("203.0.113.7", 0)),  # what stands before may be the client's invention
        ("127.0.0.1", ["6.6.6.6", "203.0.113.7"], ("203.0.113.7", 0)),
        ("127.0.0.1,10.0.0.0/8", ["6.6.6.6, 203.0.113.7, 10.1.2.3"], ("203.0.113.7", 0)),
        ("127.0.0.1,10.0.0.0/8", ["10.9.9.9, 10.1.2.3"], ("10.9.9.9", 0)),
        ("*", ["203.0.113.7, 10.1.2.3"], ("203.0.113.7", 0)),
        ("127.0.0.1", ["203.0.113.7:4711"], ("203.0.113.7", 4711)),
        ("127.0.0.1", ["[2001:db8::7]:4711"], ("2001:db8::7", 4711)),
        ("127.0.0.1", ["[2001:db8::7]"], ("2001:db8::7", 0)),
        ("127.0.0.1", ["2001:db8::7"], ("2001:db8::7", 0)),
        ("127.0.0.1", ["unknown"], ("unknown", 0)),
        ("127.0.0.1", ["1.2.3.4:99999999999999"], ("1.2.3.4", 0)),
        ("127.0.0.1", ["\x9b1m"], ("\\x9b1m", 0)),
        ("127.0.0.1", [" , "], PROXY),
        ("127.0.0.1", [], PROXY),
        ("10.0.0.0/8", ["203.0.113.7"], PROXY),
    ],
)
def test_the_client(allowed: str, forwarded_for: list[str], client: Address) -> None:
    assert TrustedProxies(allowed).forwarded(headers(*forwarded_for), PROXY, "http") == (client, "http")


@pytest.mark.parametrize(
    ("proto", "scheme"),
    [
        ("https", "https"),
        ("HTTPS", "https"),
        ("wss", "https"),
        ("ws", "http"),
        ("http, https", "https"),
        ("gopher", "http"),
    ],
)
def test_the_scheme(proto: str, scheme: str) -> None:
    assert TrustedProxies("127.0.0.1").forwarded(headers(proto=proto), PROXY, "http") == (PROXY, scheme)


@pytest.mark.parametrize(("allowed", "trusted"), [("127.0.0.1", False), ("unix", True), ("*", True)])
def test_a_client_without_an_address(allowed: str, trusted: bool) -> None:
    client, _ = TrustedProxies(allowed).forwarded(headers("203.0.113.7"), None, "http")
    assert client == (("203.0.113.7", 0) if trusted else None)


def test_what_is_no_address_is_refused() -> None:
    with pytest.raises(ValueError, match="example"):
        TrustedProxies("proxy.example")
