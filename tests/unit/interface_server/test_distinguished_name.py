"""The subject of a client's certificate in the extension "tls"."""

import _ssl
import datetime as dt
import ssl
from pathlib import Path
from typing import Any, cast

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.name import _ASN1Type
from cryptography.x509.oid import ExtensionOID, NameOID

from asgibus.interface_server.tls import client_name, distinguished_name

KEY = ec.generate_private_key(ec.SECP256R1())
NOW = dt.datetime(2030, 1, 1, tzinfo=dt.UTC)

Pair = tuple[x509.ObjectIdentifier, str]


def decoded(
    folder: Path, *names: list[Pair], kind: _ASN1Type | None = None, alternative: bytes | None = None
) -> tuple[Any, str]:
    """Return the subject of a certificate as decoded by Python and as written by another library."""
    subject = x509.Name(
        [x509.RelativeDistinguishedName([x509.NameAttribute(o, v, kind) for o, v in name]) for name in names]
    )
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "issuer")])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(KEY.public_key())
        .serial_number(1)
        .not_valid_before(NOW)
        .not_valid_after(NOW)
    )
    if alternative is not None:
        extension = x509.UnrecognizedExtension(ExtensionOID.SUBJECT_ALTERNATIVE_NAME, alternative)
        builder = builder.add_extension(extension, critical=False)
    signed = builder.sign(KEY, hashes.SHA256())
    file = folder / "certificate.pem"
    file.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    # As `getpeercert` does, without a connection.
    return _ssl._test_decode_cert(str(file))["subject"], signed.subject.rfc4514_string()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([[(NameOID.COMMON_NAME, "jane")]], "CN=jane"),
        (
            [[(NameOID.COUNTRY_NAME, "DE")], [(NameOID.ORGANIZATION_NAME, "Example")], [(NameOID.COMMON_NAME, "jane")]],
            "CN=jane,O=Example,C=DE",
        ),
        (
            [
                [(NameOID.DOMAIN_COMPONENT, "org")],
                [(NameOID.STATE_OR_PROVINCE_NAME, "S"), (NameOID.LOCALITY_NAME, "L")],
                [(NameOID.STREET_ADDRESS, "1"), (NameOID.USER_ID, "u"), (NameOID.ORGANIZATIONAL_UNIT_NAME, "o")],
            ],
            "STREET=1+OU=o+UID=u,L=L+ST=S,DC=org",
        ),
        ([[(NameOID.COMMON_NAME, 'a,b+c"d\\e<f>g;h=i')]], 'CN=a\\,b\\+c\\"d\\\\e\\<f\\>g\\;h=i'),
        ([[(NameOID.COMMON_NAME, "#jane")]], "CN=\\#jane"),
        ([[(NameOID.COMMON_NAME, " jane ")]], "CN=\\ jane\\ "),
        ([[(NameOID.COMMON_NAME, " ")]], "CN=\\ "),
        ([[(NameOID.COMMON_NAME, "Jürgen")]], "CN=Jürgen"),
        ([], ""),
    ],
)
def test_subjects(tmp_path: Path, names: list[list[Pair]], expected: str) -> None:
    subject, text = decoded(tmp_path, *names)
    assert distinguished_name(subject) == text == expected


@pytest.mark.parametrize("kind", [_ASN1Type.PrintableString, _ASN1Type.BMPString, _ASN1Type.T61String])
def test_encodings(tmp_path: Path, kind: _ASN1Type) -> None:
    subject, _ = decoded(tmp_path, [(NameOID.COMMON_NAME, "jane")], kind=kind)
    assert distinguished_name(subject) == "CN=jane"


def test_types_without_a_short_name(tmp_path: Path) -> None:
    names = [[(NameOID.EMAIL_ADDRESS, "j@e.org")], [(x509.ObjectIdentifier("2.999.3"), "x")]]
    subject, _ = decoded(tmp_path, *names)
    assert distinguished_name(subject) == "2.999.3=x,emailAddress=j@e.org"


def test_a_certificate_with_text_in_another_encoding_has_no_name(tmp_path: Path) -> None:
    class Connection:
        def getpeercert(self) -> Any:
            latin = b"\x30\x07\x81\x05\xfc@x.d"  # an e-mail address, which must be ASCII
            return {"subject": decoded(tmp_path, [(NameOID.COMMON_NAME, "jane")], alternative=latin)[0]}

    assert client_name(cast(ssl.SSLObject, Connection())) is None
