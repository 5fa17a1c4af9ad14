"""Entries sealed so that nobody reads, alters or moves them who has no key: AES-256-GCM, a key for each entry.

A sealed entry is: MARK, 4 bytes that name the key, 24 random bytes, and what AES-GCM made of the entry, with its 16
bytes of authentication behind it. Where the entry belongs (the Redis key of a channel or mailbox) is authenticated with
it. The key for the entry is HMAC-SHA256 of the first 12 of the random bytes under the long-lived key; the other 12 are
the nonce. With one key for all entries, random nonces would be safe for 2^32 of them, which a busy bus writes in days;
with 24 random bytes there is no such bound, and nothing has to be kept, counted or unlearned by either end, nor is
anything repeated when a process is forked.

The first byte of MARK begins no value in msgpack, so an entry that is sealed is never taken for one that is not.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Sequence

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from asgibus.layers.redis.codec import KEY_ID, MARK, NotSealed, UnknownKey

KEY_BYTES = 32  # AES-256, and what HMAC-SHA256 wants
ID_BYTES = 4
SALT_BYTES = 12
NONCE_BYTES = 12
HEAD_BYTES = KEY_ID.stop + SALT_BYTES + NONCE_BYTES
TAG_BYTES = 16


class Seal:
    """Some keys: the first seals, all open. It may be used from any thread."""

    def __init__(self, secrets: Sequence[str | bytes]) -> None:
        """Derive the keys from the secrets; str is taken as UTF-8. Raises ValueError for what is no secret."""
        made = [_derive(_secret(secret)) for secret in secrets]
        self._keys = dict(made)
        if len(self._keys) < len(set(made)):
            raise ValueError("two encryption keys have the same id by chance: replace one of them")
        first_id, self._first = made[0]
        self._head = MARK + first_id

    @property
    def key_ids(self) -> list[str]:
        """The names of the keys, in their order: 8 hexadecimal digits each, which tell nothing of the key."""
        return [key_id.hex() for key_id in self._keys]

    def seal(self, place: str, data: bytes) -> bytes:
        """`data` sealed, to be opened at this place."""
        random = os.urandom(SALT_BYTES + NONCE_BYTES)
        cipher = AESGCM(hmac.digest(self._first, random[:SALT_BYTES], "sha256"))
        return self._head + random + cipher.encrypt(random[SALT_BYTES:], data, MARK + place.encode())

    def open(self, place: str, data: bytes) -> bytes:
        """What was sealed for this place. Raises NotSealed, UnknownKey, or ValueError when it was altered or moved."""
        if data[:1] != MARK[:1]:
            raise NotSealed
        if not data.startswith(MARK) or len(data) < HEAD_BYTES + TAG_BYTES:
            raise ValueError("it is cut off, or sealed in a way that is not known here")
        key_id = data[KEY_ID]
        key = self._keys.get(key_id)
        if key is None:
            raise UnknownKey(key_id.hex())
        random = data[KEY_ID.stop : HEAD_BYTES]
        cipher = AESGCM(hmac.digest(key, random[:SALT_BYTES], "sha256"))
        try:
            return cipher.decrypt(random[SALT_BYTES:], data[HEAD_BYTES:], MARK + place.encode())
        except InvalidTag:
            raise ValueError(
                f"it was altered, or moved from elsewhere, since the key {key_id.hex()} sealed it"
            ) from None


def _secret(secret: object) -> bytes:
    if not isinstance(secret, str | bytes) or not secret:
        raise ValueError("an encryption key is made of a secret: str or bytes, and not empty")
    return secret.encode() if isinstance(secret, str) else secret


def _derive(secret: bytes) -> tuple[bytes, bytes]:
    """The id and the key that a secret stands for. Both follow from it alone, so that all processes have the same."""
    derivation = HKDF(SHA256(), length=ID_BYTES + KEY_BYTES, salt=b"asgibus", info=b"entries, format 1")
    derived = derivation.derive(secret)
    return derived[:ID_BYTES], derived[ID_BYTES:]
