"""TLS: the certificates in force, and the scope extension "tls" of a connection (ASGI TLS extension 0.2)."""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from weakref import WeakKeyDictionary

from asgibus.interface_server.settings import InterfaceSettings
from asgibus.interface_server.sockets import ListenError

_VERSIONS = {"TLSv1.2": 0x0303, "TLSv1.3": 0x0304}
_REQUIREMENTS = {"none": ssl.CERT_NONE, "optional": ssl.CERT_OPTIONAL, "required": ssl.CERT_REQUIRED}
_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----\n?", re.DOTALL)
_SHORT_NAMES = {  # RFC 4514 section 3; other types are written with the names that OpenSSL gives them
    "commonName": "CN",
    "localityName": "L",
    "stateOrProvinceName": "ST",
    "organizationName": "O",
    "organizationalUnitName": "OU",
    "countryName": "C",
    "streetAddress": "STREET",
    "domainComponent": "DC",
    "userId": "UID",
}

Subject = tuple[tuple[tuple[str, str], ...], ...]
"""The subject of a certificate, as `ssl.SSLObject.getpeercert` has it."""


@dataclass(frozen=True, slots=True)
class _ContextFacts:
    """The values of the extension that all connections of a context share."""

    certificate: str | None
    suites: dict[str, int]


class Tls:
    """The certificates in force."""

    def __init__(self, settings: InterfaceSettings) -> None:
        self._settings = settings
        self.context: ssl.SSLContext | None = None
        """The context of the next handshakes; None without TLS."""
        self._facts: WeakKeyDictionary[ssl.SSLContext, _ContextFacts] = WeakKeyDictionary()

    def load(self) -> None:
        """Read the certificates from their files.

        Raises:
            ListenError: A file cannot be used. The certificates in force do not change.
        """
        settings = self._settings
        if settings.ssl_certfile is None:
            return
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        try:
            # Without a password, OpenSSL would prompt for one at the terminal.
            context.load_cert_chain(settings.ssl_certfile, settings.ssl_keyfile, settings.ssl_keyfile_password or "")
            found = _CERTIFICATE.search(_text(settings.ssl_certfile))
        except (OSError, ssl.SSLError) as error:
            reason = _explain(settings.ssl_certfile, settings.ssl_keyfile or settings.ssl_certfile, error)
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
        self._facts[context] = _ContextFacts(found[0] if found else None, suites)
        self.context = context

    def extension(self, tls: ssl.SSLObject) -> dict[str, Any]:
        """Return the scope extension "tls" of a connection."""
        facts = self._facts[tls.context]
        cipher = tls.cipher()
        return {
            "server_cert": facts.certificate,
            "client_cert_chain": [ssl.DER_cert_to_PEM_cert(certificate) for certificate in _client_chain(tls)],
            "client_cert_name": client_name(tls),
            "client_cert_error": None,  # the handshake fails if there is one
            "tls_version": _VERSIONS.get(tls.version() or ""),
            "cipher_suite": facts.suites.get(cipher[0]) if cipher else None,
        }


def distinguished_name(subject: Subject) -> str:
    r"""Return a subject as RFC 4514 writes it, the most specific part first, such as `CN=jane,O=Example\, Inc.`."""
    return ",".join(
        "+".join(f"{_SHORT_NAMES.get(name, name)}={_escape(value)}" for name, value in attributes)
        for attributes in reversed(subject)
    )


def _escape(value: str) -> str:
    """Escape the value of an attribute, RFC 4514 section 2.4."""
    text = "".join("\\" + each if each in '"+,;<>\\' else "\\00" if each == "\0" else each for each in value)
    if text[:1] in ("#", " "):
        text = "\\" + text
    if text.endswith(" ") and len(value) > 1:
        text = text[:-1] + "\\ "
    return text


def client_name(tls: ssl.SSLObject) -> str | None:
    """Return the subject of the client's certificate; None if there is none, or Python cannot decode it."""
    try:
        certificate = tls.getpeercert()
    except (ssl.SSLError, UnicodeDecodeError):  # some text in the certificate is not valid in its encoding
        return None
    return distinguished_name(cast(Subject, certificate["subject"])) if certificate else None


def _client_chain(tls: ssl.SSLObject) -> list[bytes]:
    """Return the client's certificates, its own first. Before Python 3.13, only its own is available."""
    own = tls.getpeercert(binary_form=True)
    if own is None:
        return []
    whole = getattr(tls, "get_unverified_chain", None)
    return whole() if whole is not None else [own]


def _text(file: str) -> str:
    return Path(file).read_text("latin-1")


def _explain(certfile: str, keyfile: str, error: OSError) -> str:
    """Return why OpenSSL rejects the files. Its own message is often no more than "PEM lib"."""
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
