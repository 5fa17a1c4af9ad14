"""PROXY headers as bytes: valid and invalid ones, and that no byte after the header is consumed."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgibus.interface_server.proxy_protocol import SIGNATURE, Origin, ProxyHeader, ProxyProtocolError
from support.proxy_headers import BAD, GOOD, REST


@pytest.mark.parametrize(("wire", "origin"), GOOD.values(), ids=GOOD)
def test_headers(wire: bytes, origin: Origin) -> None:
    header = ProxyHeader()
    assert header.feed(wire + REST) == len(wire)
    assert (header.complete, header.origin) == (True, origin)


@pytest.mark.parametrize(("wire", "origin"), [case for case in GOOD.values() if len(case[0]) < 1000])
def test_headers_in_two_pieces(wire: bytes, origin: Origin) -> None:
    for at in range(len(wire)):
        header = ProxyHeader()
        assert header.feed(wire[:at]) == at
        assert not header.complete
        assert header.feed(wire[at:] + REST) == len(wire) - at
        assert (header.complete, header.origin) == (True, origin)


@pytest.mark.parametrize(("wire", "origin"), GOOD.values(), ids=GOOD)
def test_headers_byte_by_byte(wire: bytes, origin: Origin) -> None:
    header = ProxyHeader()
    for byte in itertools.islice(wire, 1000):
        assert header.feed(bytes([byte])) == 1
    if len(wire) > 1000:
        header.feed(wire[1000:])
    assert (header.complete, header.origin) == (True, origin)


@pytest.mark.parametrize(("wire", "why"), BAD.values(), ids=BAD)
def test_invalid_headers(wire: bytes, why: str) -> None:
    with pytest.raises(ProxyProtocolError, match=why):
        ProxyHeader().feed(wire)
    header = ProxyHeader()
    with pytest.raises(ProxyProtocolError, match=why):
        for byte in wire:
            header.feed(bytes([byte]))


@given(st.sampled_from([b"", b"PROXY ", b"PROXY TCP4 ", SIGNATURE, SIGNATURE + b"\x21\x11"]), st.binary(max_size=300))
def test_any_bytes_are_a_header_or_an_error(beginning: bytes, rest: bytes) -> None:
    header = ProxyHeader()
    data = beginning + rest
    try:
        size = header.feed(data)
    except ProxyProtocolError:
        return
    assert size == len(data) if not header.complete else 0 < size <= len(data)
