"""The cipher of a Redis layer: the protected data, and valid keys."""

import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgibus.layers import RedisChannelLayer, open_layer
from asgibus.layers.redis.codec import FOREIGN_KEYS, EntryCodec, NotSealed, UnknownKey
from asgibus.layers.redis.encryption import HEAD_BYTES, TAG_BYTES, Encryptor, ExtendedNonceCipher

pytestmark = pytest.mark.anyio

REFUSED = (NotSealed, UnknownKey, ValueError)
PLACE = "asgibus:mailbox:a!"
SEALED_BY_THE_FIRST_RELEASE = (
    "c1020a5b4310000102030405060708090a0b0c0d0e0f101112131415161748805957044158d8d27004455b3413eb58ea564a"
)

# The seal itself.


@given(
    st.binary(max_size=500), st.text(max_size=30), st.lists(st.binary(min_size=1), min_size=1, max_size=4), st.data()
)
def test_entries_are_decrypted_with_each_of_the_keys(
    data: bytes, place: str, secrets: list[bytes], draw: st.DataObject
) -> None:
    first = draw.draw(st.sampled_from(secrets))
    sealed = Encryptor([first]).encrypt(place, data)
    assert Encryptor(secrets).decrypt(place, sealed) == data
    assert len(sealed) == HEAD_BYTES + len(data) + TAG_BYTES


@given(st.binary(max_size=100), st.data())
def test_altered_entries_are_rejected(data: bytes, draw: st.DataObject) -> None:
    seal = Encryptor(["a", "b"])
    sealed = seal.encrypt(PLACE, data)
    at = draw.draw(st.integers(0, len(sealed) - 1))
    changed = sealed[at] ^ draw.draw(st.integers(1, 255))
    for wrong in (sealed[:at] + bytes([changed]) + sealed[at + 1 :], sealed[:at], sealed + b"x"):
        with pytest.raises(REFUSED):
            seal.decrypt(PLACE, wrong)


@pytest.mark.parametrize("at", [*range(HEAD_BYTES), -TAG_BYTES - 1, -TAG_BYTES, -1])
def test_every_part_is_protected(at: int) -> None:
    seal = Encryptor(["a"])
    sealed = bytearray(seal.encrypt(PLACE, b"data"))
    sealed[at] ^= 1
    with pytest.raises(REFUSED) as raised:
        seal.decrypt(PLACE, bytes(sealed))
    expected = NotSealed if at == 0 else UnknownKey if 2 <= at < 6 else ValueError
    assert type(raised.value) is expected


def test_an_entry_is_bound_to_its_place() -> None:
    seal = Encryptor(["a"])
    with pytest.raises(ValueError, match="moved from elsewhere"):
        seal.decrypt("asgibus:mailbox:b!", seal.encrypt(PLACE, b"data"))


def test_equal_entries_have_different_ciphertexts() -> None:
    seal = Encryptor(["a"])
    assert len({seal.encrypt(PLACE, b"data") for _ in range(1000)}) == 1000


@pytest.mark.parametrize(
    ("key", "associated", "ciphertext"),
    [
        (b"\x01" * 32, b"", "ce546ef63c9cc60765923609b33a9a1974e96e52daf2fcf7075e2271"),
        (
            b"\x03" * 32,
            b"c2sp.org/XAES-256-GCM",
            "986ec1832593df5443a179437fd083bf3fdb41abd740a21f71eb769d",
        ),
    ],
)
def test_the_cipher_is_xaes_256_gcm(key: bytes, associated: bytes, ciphertext: str) -> None:
    """The vectors of its specification, one for each value of the highest bit that the subkey is made of."""
    cipher, nonce = ExtendedNonceCipher(key), b"ABCDEFGHIJKLMNOPQRSTUVWX"
    assert cipher.encrypt(nonce, b"XAES-256-GCM", associated).hex() == ciphertext
    assert cipher.decrypt(nonce, bytes.fromhex(ciphertext), associated) == b"XAES-256-GCM"


def test_threads_encrypt_and_decrypt_concurrently() -> None:
    seal = Encryptor(["a"])

    def work(number: int) -> bool:
        data = number.to_bytes(4)
        return all(seal.decrypt(PLACE, seal.encrypt(PLACE, data)) == data for _ in range(200))

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(work, range(32)))


def test_entries_of_the_first_release_are_decrypted() -> None:
    sealed = bytes.fromhex(SEALED_BY_THE_FIRST_RELEASE)
    assert Encryptor(["other", "secret"]).decrypt(PLACE, sealed) == b"data"
    assert Encryptor([b"secret"]).key_ids == Encryptor(["secret"]).key_ids == [sealed[2:6].hex()]


@pytest.mark.parametrize("keys", ["secret", b"secret", [""], [b"", "a"], [5], [None]])
def test_invalid_lists_of_keys_are_rejected(keys: Any) -> None:
    with pytest.raises(ValueError, match="encryption key"):
        RedisChannelLayer(symmetric_encryption_keys=keys)


def test_a_missing_library_is_an_error_with_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.ciphers.aead", None)
    monkeypatch.delitem(sys.modules, "asgibus.layers.redis.encryption")
    with pytest.raises(ValueError, match=r"pip install 'asgibus\[encryption\]'"):
        open_layer("redis://127.0.0.1:1", encryption_keys=["secret"])
    open_layer("redis://127.0.0.1:1")


def test_the_memory_layer_ignores_keys() -> None:
    open_layer("memory://", encryption_keys=["secret"])


def test_unknown_keys_are_logged_rarely(caplog: pytest.LogCaptureFixture) -> None:
    counts: Counter[str] = Counter()
    entries = EntryCodec(Encryptor(["a"]), counts)
    for number in range(1000):
        entries.log_rejected(PLACE, "1-1", UnknownKey(f"{number:08x}"))
    assert len(caplog.records) == FOREIGN_KEYS
    assert counts["entry of unknown key"] == 1000


# Data in Redis.


# Other keys.
