"""TLS: the certificates in force, and what a scope says of a connection (ASGI TLS extension 0.2)."""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from asgibus.interface_server.distinguished_name import subject_of
from asgibus.interface_server.settings import InterfaceSettings
from asgibus.interface_server.sockets import ListenError

_VERSIONS = {"TLSv1.2": 0x0303, "TLSv1.3": 0x0304}
_REQUIREMENTS = {"none": ssl.CERT_NONE, "optional": ssl.CERT_OPTIONAL, "required": ssl.CERT_REQUIRED}
_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----\n?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class _Facts:
    """What is the same for all connections of a context."""

    certificate: str | None
    suites: dict[str, int]


class Tls:
    """The certificates in force. `load` reads them from the settings' files, the first time and again."""

    def __init__(self, settings: InterfaceSettings) -> None:
        self._settings = settings
        self.context: ssl.SSLContext | None = None
        """For the handshakes to come; None for plain text."""
        self._facts: WeakKeyDictionary[ssl.SSLContext, _Facts] = WeakKeyDictionary()

    def load(self) -> None:
        """Take the certificates as the files have them now. Raises ListenError, and leaves all as it was."""
        settings = self._settings
        if settings.ssl_certfile is None:
            return
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        try:
            # Without a password OpenSSL would ask for one at the terminal, and wait.
            context.load_cert_chain(settings.ssl_certfile, settings.ssl_keyfile, settings.ssl_keyfile_password or "")
            found = _CERTIFICATE.search(_text(settings.ssl_certfile))
        except (OSError, ssl.SSLError) as error:
            reason = _reason(settings.ssl_certfile, settings.ssl_keyfile or settings.ssl_certfile, error)
            raise ListenError(f"the TLS certificate {settings.ssl_certfile} cannot be used: {reason}") from error
        if settings.ssl_ca_certs is not None:
            try:
                context.load_verify_locations(settings.ssl_ca_certs)
            except (OSError, ssl.SSLError) as error:
                text = f"the authorities in {settings.ssl_ca_certs} (--ssl-ca-certs) cannot be used: {error}"
                raise ListenError(text) from error
            context.verify_mode = _REQUIREMENTS[settings.ssl_cert_reqs or "required"]
        context.set_alpn_protocols(["http/1.1"])
        suites = {cipher["name"]: cipher["id"] & 0xFFFF for cipher in context.get_ciphers()}
        self._facts[context] = _Facts(found[0] if found else None, suites)
        self.context = context

    def extension(self, tls: ssl.SSLObject) -> dict[str, Any]:
        """The scope extension "tls" of a connection."""
        facts = self._facts[tls.context]
        cipher = tls.cipher()
        chain = _client_chain(tls)
        return {
            "server_cert": facts.certificate,
            "client_cert_chain": [ssl.DER_cert_to_PEM_cert(certificate) for certificate in chain],
            "client_cert_name": subject_of(chain[0]) if chain else None,
            "client_cert_error": None,  # whoever has a bad one gets no further than the handshake
            "tls_version": _VERSIONS.get(tls.version() or ""),
            "cipher_suite": facts.suites.get(cipher[0]) if cipher else None,
        }


def _text(file: str) -> str:
    return Path(file).read_text("latin-1")


def _reason(certfile: str, keyfile: str, error: OSError) -> str:
    """Why OpenSSL does not take these files: of most of it, its own words say no more than "PEM lib"."""
    if "KEY_VALUES_MISMATCH" in str(error):
        return f"the private key in {keyfile} belongs to another one"
    try:
        certificates, key = _text(certfile), _text(keyfile)
    except OSError:
        return str(error)
    if not _CERTIFICATE.search(certificates):
        return "there is no certificate in PEM format in it"
    if "PRIVATE KEY-----" not in key:
        return f"there is no private key in PEM format in {keyfile}: name its file with --ssl-keyfile"
    if "ENCRYPTED" in key:
        return f"--ssl-keyfile-password is missing or wrong for the private key in {keyfile}"
    return str(error)


def _client_chain(tls: ssl.SSLObject) -> list[bytes]:
    """The client's certificates, its own first. Before Python 3.13 the others are not to be had."""
    own = tls.getpeercert(binary_form=True)
    if own is None:
        return []
    whole = getattr(tls, "get_unverified_chain", None)
    return whole() if whole is not None else [own]
