"""Encryption of entries: XAES-256-GCM, as C2SP specifies it, with a random nonce for each entry.

An encrypted entry is: MARK, 4 bytes that name the key, the nonce of 24 bytes, and the output of XAES-256-GCM, whose
last 16 bytes authenticate it. Where the entry belongs (the Redis key of a channel or mailbox) is authenticated as well.

AES-256-GCM alone has nonces of 12 bytes: random ones are safe for 2^32 entries, which a busy bus writes in days. With
24 bytes there is no such bound, and neither end has to keep or count anything, also when a process is forked.

No value in msgpack begins with the first byte of MARK, so encrypted and plain entries cannot be confused.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from asgibus.layers.redis.codec import KEY_ID, MARK, NotSealed, UnknownKey

KEY_BYTES = 32  # AES-256
ID_BYTES = 4
BLOCK_BYTES = 16  # of AES
NONCE_BYTES = 24
GCM_NONCE = slice(12, NONCE_BYTES)  # the nonce of AES-GCM; what stands before it derives the key
HEAD_BYTES = KEY_ID.stop + NONCE_BYTES
TAG_BYTES = 16


class ExtendedNonceCipher:
    """XAES-256-GCM with one key (https://c2sp.org/XAES-256-GCM). Methods may be called from any thread."""

    def __init__(self, key: bytes) -> None:
        """Take a key of 32 bytes."""
        self._block_cipher = Cipher(algorithms.AES(key), modes.ECB())  # noqa: S305  # as a permutation, for single blocks
        self._of_thread = threading.local()
        self._subkey = _double(self._encryptor().update(bytes(BLOCK_BYTES)))

    def encrypt(self, nonce: bytes, data: bytes, associated: bytes) -> bytes:
        """Return the ciphertext with its tag; `nonce` is 24 bytes, never used before with this key."""
        return self._cipher(nonce).encrypt(nonce[GCM_NONCE], data, associated)

    def decrypt(self, nonce: bytes, data: bytes, associated: bytes) -> bytes:
        """Return the plaintext. Raises cryptography's InvalidTag if anything was altered."""
        return self._cipher(nonce).decrypt(nonce[GCM_NONCE], data, associated)

    def _cipher(self, nonce: bytes) -> AESGCM:
        """Return AES-GCM with the key for this nonce: CMAC in counter mode (NIST SP 800-108r1) of the first half."""
        half = nonce[: GCM_NONCE.start]
        first = int.from_bytes(b"\x00\x01X\x00" + half) ^ self._subkey
        second = int.from_bytes(b"\x00\x02X\x00" + half) ^ self._subkey
        return AESGCM(self._encryptor().update(first.to_bytes(BLOCK_BYTES) + second.to_bytes(BLOCK_BYTES)))

    def _encryptor(self) -> CipherContext:
        """Return the context of this thread: threads cannot share one, and a new one for each entry costs 7 µs."""
        encryptor: CipherContext | None = getattr(self._of_thread, "encryptor", None)
        if encryptor is None:
            encryptor = self._of_thread.encryptor = self._block_cipher.encryptor()
        return encryptor


class Encryptor:
    """Encrypt with the first of several keys, decrypt with all of them. Methods may be called from any thread."""

    def __init__(self, secrets: Sequence[str | bytes]) -> None:
        """Derive the keys from the secrets; str is encoded as UTF-8. Raises ValueError for an invalid secret."""
        keys = dict.fromkeys(_derive_key(_secret_bytes(secret)) for secret in secrets)
        self._ciphers = {key_id: ExtendedNonceCipher(key) for key_id, key in keys}
        if len(self._ciphers) < len(keys):
            raise ValueError("two encryption keys have the same id by chance: replace one of them")
        first_id = next(iter(self._ciphers))
        self._first = self._ciphers[first_id]
        self._head = MARK + first_id

    @property
    def key_ids(self) -> list[str]:
        """The ids of the keys, in their order: 8 hexadecimal digits each, which reveal nothing of the key."""
        return [key_id.hex() for key_id in self._ciphers]

    def encrypt(self, place: str, data: bytes) -> bytes:
        """Return the encrypted entry of a place."""
        nonce = os.urandom(NONCE_BYTES)
        return self._head + nonce + self._first.encrypt(nonce, data, MARK + place.encode())

    def decrypt(self, place: str, data: bytes) -> bytes:
        """Return the decrypted entry of a place.

        Raises:
            NotSealed: It is not encrypted.
            UnknownKey: It is encrypted with another key.
            ValueError: It was altered, moved from another place, or cut off.
        """
        if data[:1] != MARK[:1]:
            raise NotSealed
        if not data.startswith(MARK) or len(data) < HEAD_BYTES + TAG_BYTES:
            raise ValueError("it is cut off, or encrypted in an unknown format")
        key_id = data[KEY_ID]
        cipher = self._ciphers.get(key_id)
        if cipher is None:
            raise UnknownKey(key_id.hex())
        try:
            return cipher.decrypt(data[KEY_ID.stop : HEAD_BYTES], data[HEAD_BYTES:], MARK + place.encode())
        except InvalidTag:
            raise ValueError(
                f"it was altered, or moved from elsewhere, since the key {key_id.hex()} sealed it"
            ) from None


def _double(block: bytes) -> int:
    """Return the block doubled in GF(2^128), as for the first subkey of CMAC (NIST SP 800-38B, section 6.1)."""
    doubled = int.from_bytes(block) << 1
    return doubled ^ (1 << 128 | 0x87) if doubled >> 128 else doubled


def _secret_bytes(secret: object) -> bytes:
    if not isinstance(secret, str | bytes) or not secret:
        raise ValueError("an encryption key is made of a secret: str or bytes, and not empty")
    return secret.encode() if isinstance(secret, str) else secret


def _derive_key(secret: bytes) -> tuple[bytes, bytes]:
    """Return the id and the key of a secret. Both depend on the secret alone, so that all processes agree."""
    derivation = HKDF(SHA256(), length=ID_BYTES + KEY_BYTES, salt=b"asgibus", info=b"entries, format 2")
    derived = derivation.derive(secret)
    return derived[:ID_BYTES], derived[ID_BYTES:]
