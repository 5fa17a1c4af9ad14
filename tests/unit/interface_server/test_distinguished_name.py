import datetime as dt

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.name import _ASN1Type
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from asgibus.interface_server.distinguished_name import subject_of

KEY = ec.generate_private_key(ec.SECP256R1())
NOW = dt.datetime(2030, 1, 1, tzinfo=dt.UTC)

Pair = tuple[x509.ObjectIdentifier, str]


def certificate(*names: list[Pair], kind: _ASN1Type | None = None) -> tuple[bytes, str]:
    """A certificate in DER, and its subject as another library puts it."""
    subject = x509.Name(
        [x509.RelativeDistinguishedName([x509.NameAttribute(o, v, kind) for o, v in name]) for name in names]
    )
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "issuer")])
    signed = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(KEY.public_key())
        .serial_number(1)
        .not_valid_before(NOW)
        .not_valid_after(NOW)
        .sign(KEY, hashes.SHA256())
    )
    return signed.public_bytes(serialization.Encoding.DER), signed.subject.rfc4514_string()


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
        ([[(NameOID.COMMON_NAME, "Jürgen")]], "CN=Jürgen"),
        ([], ""),
        # A type without a short name: its number, and its value's bytes.
        ([[(NameOID.EMAIL_ADDRESS, "j@e.org")]], "1.2.840.113549.1.9.1=#16076a40652e6f7267"),
        ([[(x509.ObjectIdentifier("2.999.3"), "x")]], "2.999.3=#0c0178"),
    ],
)
def test_subjects(names: list[list[Pair]], expected: str) -> None:
    der, _ = certificate(*names)
    assert subject_of(der) == expected


@pytest.mark.parametrize("kind", [_ASN1Type.PrintableString, _ASN1Type.BMPString, _ASN1Type.T61String])
def test_kinds_of_strings(kind: _ASN1Type) -> None:
    der, told = certificate([(NameOID.COMMON_NAME, "jane")], kind=kind)
    assert subject_of(der) == told == "CN=jane"


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=16))
def test_values_as_another_library_has_them(value: str) -> None:
    der, told = certificate([(NameOID.COMMON_NAME, value)])
    assert subject_of(der) == told


@given(st.integers(0, 400))
def test_what_is_no_certificate(length: int) -> None:
    der, _ = certificate([(NameOID.COMMON_NAME, "jane")])
    with pytest.raises(ValueError, match=r"not a certificate|unpack"):
        subject_of(der[: min(length, len(der) - 1)])
