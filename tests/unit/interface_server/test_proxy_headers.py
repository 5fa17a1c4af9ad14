import pytest

from asgibus.interface_server.proxy_headers import TrustedProxies
from asgibus.protocol.connect_request import Address

PROXY: Address = ("127.0.0.1", 5000)


def headers(*forwarded_for: str, proto: str | None = None) -> list[tuple[bytes, bytes]]:
    lines = [(b"x-forwarded-for", value.encode("latin-1")) for value in forwarded_for]
    return lines if proto is None else [*lines, (b"x-forwarded-proto", proto.encode())]


@pytest.mark.parametrize(
    ("allowed", "forwarded_for", "client"),
    [
        ("127.0.0.1", ["203.0.113.7"], ("203.0.113.7", 0)),
        ("127.0.0.1", ["6.6.6.6, 203.0.113.7"], ("203.0.113.7", 0)),  # a client may have invented the earlier ones
        ("127.0.0.1", ["6.6.6.6", "203.0.113.7"], ("203.0.113.7", 0)),
        ("127.0.0.1,10.0.0.0/8", ["6.6.6.6, 203.0.113.7, 10.1.2.3"], ("203.0.113.7", 0)),
        ("127.0.0.1,10.0.0.0/8", ["10.9.9.9, 10.1.2.3"], ("10.9.9.9", 0)),
        ("*", ["203.0.113.7, 10.1.2.3"], ("203.0.113.7", 0)),
        ("127.0.0.1", ["203.0.113.7:4711"], ("203.0.113.7", 4711)),
        ("127.0.0.1", ["[2001:db8::7]:4711"], ("2001:db8::7", 4711)),
        ("127.0.0.1", ["[2001:db8::7]"], ("2001:db8::7", 0)),
        ("127.0.0.1", ["2001:db8::7"], ("2001:db8::7", 0)),
        ("127.0.0.1", ["2001:DB8:0::7"], ("2001:db8::7", 0)),
        ("127.0.0.1", ["1.2.3.4:65536"], ("1.2.3.4", 0)),
        *[
            ("127.0.0.1", [nonsense], PROXY)
            for nonsense in (
                *(
                    "unknown",
                    "_hidden",
                    "<script>",
                    "admin",
                    "localhost",
                    "1.2.3",
                    "1.2.3.4.5",
                    "01.2.3.4",
                    "1.2.3.256",
                ),
                *(
                    "[::1",
                    "::g",
                    "fe80::1%eth0",
                    "1.2.3.4\x00",
                    "\u0661.2.3.4".encode().decode("latin-1"),
                    "[1.2.3.4]x[",
                ),
            )
        ],
        ("127.0.0.1", ["1.2.3.4:99999999999999"], ("1.2.3.4", 0)),
        ("127.0.0.1", ["\x9b1m"], PROXY),
        (
            "127.0.0.1,10.0.0.0/8,192.0.2.1",
            ["6.6.6.6, 203.0.113.7, 192.0.2.1", "10.1.2.3,10.1.2.4"],
            ("203.0.113.7", 0),
        ),
        ("127.0.0.1,10.0.0.0/8", ["203.0.113.7, ::ffff:10.1.2.3"], ("203.0.113.7", 0)),
        ("127.0.0.1,2001:db8::/32", ["2001:db9::7, [2001:db8::1]:443, 2001:db8::2"], ("2001:db9::7", 0)),
        ("127.0.0.1,10.0.0.0/8", ["10.1.2.3, unknown, 10.1.2.4"], PROXY),
        (" 127.0.0.1 , ,10.0.0.1/8 ", ["203.0.113.7, 10.1.2.3"], ("203.0.113.7", 0)),
        ("127.0.0.1", [" , "], PROXY),
        ("127.0.0.1", [], PROXY),
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


@pytest.mark.parametrize(
    ("forwarded_for", "proto", "scheme"),
    [
        ("203.0.113.7, 10.1.2.3", "https, http", "https"),  # the scheme at each of two proxies
        ("203.0.113.7, 10.1.2.3", "https", "https"),
        ("203.0.113.7", "https, http", "http"),  # the first is the client's invention
        ("203.0.113.7, 10.1.2.3", "https, http, http", "http"),
        ("10.1.2.2, 10.1.2.3", "https, http", "https"),
    ],
)
def test_the_scheme_of_several_hops(forwarded_for: str, proto: str, scheme: str) -> None:
    trusted = TrustedProxies("127.0.0.1,10.0.0.0/8")
    assert trusted.forwarded(headers(forwarded_for, proto=proto), PROXY, "http")[1] == scheme


@pytest.mark.parametrize("peer", ["::ffff:127.0.0.1", "127.0.0.1"])
def test_an_ipv4_proxy_at_a_dual_stack_listener(peer: str) -> None:
    assert TrustedProxies("127.0.0.1").trusts_peer((peer, 1))


def test_a_client_on_a_unix_socket_with_a_name() -> None:
    peer: Address = ("/run/client", None)
    assert TrustedProxies("unix").trusts_peer(peer)
    assert not TrustedProxies("127.0.0.1").trusts_peer(peer)


@pytest.mark.parametrize(("allowed", "trusted"), [("127.0.0.1", False), ("unix", True), ("*", True)])
def test_a_client_without_an_address(allowed: str, trusted: bool) -> None:
    assert TrustedProxies(allowed).trusts_peer(None) is trusted


def test_another_peer_is_not_trusted() -> None:
    assert not TrustedProxies("10.0.0.0/8").trusts_peer(PROXY)


def test_invalid_entries_are_rejected() -> None:
    with pytest.raises(ValueError, match="example"):
        TrustedProxies("proxy.example")
