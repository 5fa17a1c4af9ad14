"""Valid and invalid hosts and ports in requests."""

import pytest

from asgibus.interface_server.http.request import is_authority

VALID = [
    b"",
    b"test",
    b"test:",
    b"test:0",
    b"test:65535",
    b"test:00080",
    b"a.b_c~d-e",
    b"a;b=c!$&'()*+,",
    b"%41%c3%bc",
    b"127.0.0.1:80",
    b"999.1.1.1",  # a name that resembles an address
    b"[::]",
    b"[::ffff:1.2.3.4]:1",
    b"[v1.x:y]",
]
INVALID = [
    b"]ufd",
    b"[::1",
    b"::1]",
    b"[::1]x",
    b"[::1]80",
    b"[]",
    b"[1.2.3.4]",
    b"[g::1]",
    b"[1::2::3]",
    b"[fe80::1%25eth0]",
    b"[v1]",
    b"::1",
    b":80",
    b"test:65536",
    b"test:99999",
    b"test:" + b"9" * 5000,
    b"test:-1",
    b"test:8a",
    b"test:80:80",
    b"%zz",
    b"%4",
    b"me@test",
    b"a/b",
    b"a b",
    b"a\\b",
    b"test\n",
    "ü".encode(),
]


@pytest.mark.parametrize("value", VALID)
def test_valid(value: bytes) -> None:
    assert is_authority(value)


@pytest.mark.parametrize("value", INVALID)
def test_invalid(value: bytes) -> None:
    assert not is_authority(value)
