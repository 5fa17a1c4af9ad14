"""TLS: certificates of both sides, their data in the scope, and reloading."""

import json
import signal
import socket
import ssl
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID

from support.certificates import Authority, certificates_in
from support.deadline import wait_until
from support.processes import Process
from support.raw import RawClient
from support.scopes import build_scope, get
from support.websocket import ws

APP = "interface_server.http_app:app"
Start = Callable[..., Process]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Provide a self-signed certificate for localhost with its key, and the key with a password in another file."""
    folder = tmp_path_factory.mktemp("tls")
    run = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-days", "2"]
    subprocess.run([*run, *names, "-keyout", folder / "key", "-out", folder / "cert"], check=True, capture_output=True)
    subprocess.run(
        ["openssl", "ec", "-aes256", "-passout", "pass:secret", "-in", folder / "key", "-out", folder / "locked"],
        check=True,
        capture_output=True,
    )
    combined = folder / "both.pem"
    combined.write_bytes((folder / "key").read_bytes() + (folder / "cert").read_bytes())
    return combined


@pytest.fixture
def trusting(certificate: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(certificate))
    context.set_alpn_protocols(["h2", "http/1.1"])
    return context


def test_tls(start_interface: Start, certificate: Path, trusting: ssl.SSLContext) -> None:
    server = start_interface("--ssl-certfile", certificate, app=APP)
    assert server.url.startswith("https://127.0.0.1:")
    scope = build_scope(server, get("/"), tls=trusting)
    assert (scope["scheme"], scope["server"]) == ("https", ["127.0.0.1", server.port])
    assert "tls" in scope["extensions"]
    with RawClient(server, tls=trusting) as client:
        assert client.socket.selected_alpn_protocol() == "http/1.1"  # type: ignore[attr-defined]
        body = bytes(range(256)) * 8192
        for _ in range(2):
            assert client.request("POST", "/body", body=body).body == body
        assert client.request("GET", "/", "Connection: close").status == 200
        assert client.read_until_close() == b""


def test_an_early_response_over_tls_is_seen(
    start_interface: Start, certificate: Path, trusting: ssl.SSLContext
) -> None:
    server = start_interface("--ssl-certfile", certificate, app=APP)
    with RawClient(server, tls=trusting) as client:
        client.send(b"POST /unread?size=100000 HTTP/1.1\r\nHost: test\r\nContent-Length: 8000000\r\n\r\n")
        client.send(bytes(4_000_000))
        assert client.read_response().body == bytes(100_000)


def test_a_missing_handshake_times_out(start_interface: Start, certificate: Path) -> None:
    server = start_interface("--ssl-certfile", certificate, "--head-timeout", 0.3, app=APP)
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as silent:
        assert silent.recv(1) == b""


def test_a_key_with_a_password(start_interface: Start, certificate: Path, trusting: ssl.SSLContext) -> None:
    files = ("--ssl-certfile", certificate.parent / "cert", "--ssl-keyfile", certificate.parent / "locked")
    server = start_interface(*files, "--ssl-keyfile-password", "secret", app=APP)
    assert build_scope(server, get("/"), tls=trusting)["scheme"] == "https"
    for password in ((), ("--ssl-keyfile-password", "wrong")):
        rejected = start_interface(*files, *password, app=APP, ready=False)
        assert rejected.wait() == 1
        assert f"the TLS certificate {certificate.parent / 'cert'} cannot be used" in rejected.log()
        assert f"password is missing or wrong for the private key in {certificate.parent / 'locked'}" in rejected.log()


def test_the_error_for_a_bad_file_names_its_fault(
    start_interface: Start, certificate: Path, authority: Authority, tmp_path: Path
) -> None:
    cert, other, nothing = certificate.parent / "cert", authority.issue("other.pem"), tmp_path / "nothing"
    nothing.touch()
    for options, message in (
        (
            ("--ssl-certfile", cert),
            f"there is no private key in PEM format in {cert}: name its file with --ssl-keyfile",
        ),
        (("--ssl-certfile", nothing), "there is no certificate in PEM format in it"),
        (("--ssl-certfile", cert, "--ssl-keyfile", other), f"the private key in {other} belongs to another one"),
        (("--ssl-certfile", certificate, "--ssl-ca-certs", nothing), f"the authorities in {nothing} (--ssl-ca-certs)"),
    ):
        rejected = start_interface(*options, app=APP, ready=False)
        assert rejected.wait() == 1
        assert message in rejected.log()


def test_client_certificates_are_required_by_option(
    start_interface: Start, certificate: Path, trusting: ssl.SSLContext
) -> None:
    server = start_interface("--ssl-certfile", certificate, "--ssl-ca-certs", certificate, app=APP)
    with pytest.raises((OSError, EOFError)):
        build_scope(server, get("/"), tls=trusting)
    trusting.load_cert_chain(certificate)
    assert build_scope(server, get("/"), tls=trusting)["scheme"] == "https"


def test_plain_http_at_a_tls_port_gets_no_answer(start_interface: Start, certificate: Path) -> None:
    server = start_interface("--ssl-certfile", certificate, app=APP)
    with RawClient(server) as client:
        client.send(get("/"))
        assert b"HTTP/1.1 200" not in client.read_until_close()


# The scope.


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


def tls_of(server: Process, context: ssl.SSLContext) -> dict[str, Any]:
    with RawClient(server, tls=context) as client:
        response = client.request("GET", "/tls")
        assert response.status == 200
        extension: dict[str, Any] = json.loads(response.body)
        return extension


@pytest.mark.parametrize(
    ("version", "number", "suite"),
    [(ssl.TLSVersion.TLSv1_3, 0x0304, 0x1302), (ssl.TLSVersion.TLSv1_2, 0x0303, 0xC02B)],
)
def test_the_scope_of_a_connection(
    start_interface: Start, authority: Authority, version: ssl.TLSVersion, number: int, suite: int
) -> None:
    file = authority.issue("server.pem")
    server = start_interface("--ssl-certfile", file, app=APP)
    context = authority.client()
    context.minimum_version = context.maximum_version = version
    context.set_ciphers("ECDHE-ECDSA-AES128-GCM-SHA256")  # of TLS 1.2: that of 1.3 is OpenSSL's first choice
    assert tls_of(server, context) == {
        "server_cert": certificates_in(file)[0],
        "client_cert_chain": [],
        "client_cert_name": None,
        "client_cert_error": None,
        "tls_version": number,
        "cipher_suite": suite,
    }


def test_no_tls_no_extension(start_interface: Start) -> None:
    with RawClient(start_interface(app=APP)) as client:
        assert client.request("GET", "/tls").body == b"null"


SUBJECT = [
    x509.RelativeDistinguishedName([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Example, Inc.")]),
    x509.RelativeDistinguishedName([x509.NameAttribute(NameOID.COMMON_NAME, "jane")]),
]


@pytest.mark.parametrize("requirement", [(), ("--ssl-cert-reqs", "optional")])
def test_the_certificate_of_a_client(
    start_interface: Start, authority: Authority, requirement: tuple[str, ...]
) -> None:
    files = ("--ssl-certfile", authority.issue("server.pem"), "--ssl-ca-certs", authority.file)
    server = start_interface(*files, *requirement, app=APP)
    file = authority.issue("client.pem", SUBJECT)
    extension = tls_of(server, authority.client(file))
    assert extension["client_cert_chain"] == certificates_in(file)
    assert extension["client_cert_name"] == "CN=jane,O=Example\\, Inc."
    assert extension["client_cert_error"] is None
    if requirement:
        assert tls_of(server, authority.client())["client_cert_chain"] == []
    else:
        with pytest.raises((OSError, EOFError)):
            tls_of(server, authority.client())
    stranger = Authority(authority.folder, "stranger").issue("stranger-client.pem")
    with pytest.raises((OSError, EOFError)):
        tls_of(server, authority.client(stranger))


def test_client_certificates_are_not_requested_by_default(start_interface: Start, authority: Authority) -> None:
    files = ("--ssl-certfile", authority.issue("server.pem"), "--ssl-ca-certs", authority.file)
    server = start_interface(*files, "--ssl-cert-reqs", "none", app=APP)
    assert tls_of(server, authority.client(authority.issue("client.pem")))["client_cert_name"] is None


# Reading the certificates again.


def serial(server: Process, context: ssl.SSLContext) -> str:
    """Return the serial number of the certificate that the server shows."""
    with RawClient(server, tls=context) as client:
        certificate: dict[str, str] = client.socket.getpeercert()  # type: ignore[attr-defined]
        assert client.request("GET", "/tls").status == 200
        return certificate["serialNumber"]


def hang_up(server: Process, message: str, times: int = 1) -> None:
    server.send_signal(signal.SIGHUP)
    wait_until(lambda: server.log().count(message) == times)


@pytest.mark.parametrize("options", [(), ("--proxy-protocol",)])
@pytest.mark.parametrize("unix", [False, True])
def test_new_connections_get_the_new_certificate(
    start_interface: Start, authority: Authority, tmp_path: Path, options: tuple[str, ...], unix: bool
) -> None:
    if options and unix:
        options = (*options, "--forwarded-allow-ips", "unix")
    address = ("--uds", tmp_path / "s") if unix else ()
    file = authority.issue("server.pem")
    server = start_interface("--ssl-certfile", file, *options, *address, app=APP)
    header = b"PROXY UNKNOWN\r\n" if options else b""
    context = authority.client()

    def connect() -> RawClient:
        return RawClient(server, tls=context, before_tls=header)

    def number(client: RawClient) -> str:
        certificate: dict[str, str] = client.socket.getpeercert()  # type: ignore[attr-defined]
        return certificate["serialNumber"]

    with connect() as old:
        first = number(old)
        shown = old.request("GET", "/tls").body
        for times in (1, 2, 3):
            authority.issue("server.pem")
            hang_up(server, "the certificates are read again", times)
            with connect() as new:
                assert number(new) != first
                first = number(new)
                assert json.loads(new.request("GET", "/tls").body)["server_cert"] == certificates_in(file)[0]
        assert old.request("GET", "/tls").body == shown  # open connections stay


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open files are counted by /proc")
def test_reloads_leak_no_memory(start_interface: Start, authority: Authority) -> None:
    server = start_interface("--ssl-certfile", authority.issue("server.pem"), app=APP)

    def open_files() -> int:
        return len(list(Path(f"/proc/{server.pid}/fd").iterdir()))

    before = open_files()
    for times in range(1, 6):
        hang_up(server, "the certificates are read again", times)
    wait_until(lambda: open_files() == before)


def test_a_bad_new_certificate_keeps_the_old_one(start_interface: Start, authority: Authority) -> None:
    file = authority.issue("server.pem")
    server = start_interface("--ssl-certfile", file, app=APP)
    before = serial(server, authority.client())
    for times, content in enumerate((b"nonsense", b"", certificates_in(file)[0].encode()), 1):
        file.write_bytes(content)
        hang_up(server, "the certificates stay as they are", times)
        assert serial(server, authority.client()) == before
    file.unlink()
    hang_up(server, "the certificates stay as they are", 4)
    assert serial(server, authority.client()) == before
    lines = [line for line in server.log().splitlines() if "stay as they are" in line]
    assert len(lines) == 4
    assert all(f"the TLS certificate {file} cannot be used" in line for line in lines)
    authority.issue("server.pem")
    hang_up(server, "the certificates are read again")
    assert serial(server, authority.client()) != before


def test_removed_authorities_are_no_longer_trusted(
    start_interface: Start, authority: Authority, tmp_path: Path
) -> None:
    trusted = tmp_path / "trusted.pem"
    trusted.write_bytes(authority.file.read_bytes())
    server = start_interface("--ssl-certfile", authority.issue("server.pem"), "--ssl-ca-certs", trusted, app=APP)
    client = authority.client(authority.issue("client.pem"))
    assert tls_of(server, client)["client_cert_name"] == "CN=localhost"
    trusted.write_bytes(Authority(tmp_path, "next").file.read_bytes())
    hang_up(server, "the certificates are read again")
    with pytest.raises((OSError, EOFError)):
        tls_of(server, client)


def test_open_websockets_survive_a_reload(start_interface: Start, authority: Authority) -> None:
    server = start_interface("--ssl-certfile", authority.issue("server.pem"), app="interface_server.websocket_app:app")
    with ws(server, "/echo", ssl=authority.client(), server_hostname="localhost") as socket:
        authority.issue("server.pem")
        hang_up(server, "the certificates are read again")
        socket.send("still here")
        assert socket.recv(timeout=30) == "still here"


@pytest.mark.redis
def test_under_a_supervisor_new_processes_read_new_certificates(
    start_interface: Start, start_worker: Start, redis_url: str, authority: Authority
) -> None:
    file = authority.issue("server.pem")
    server = start_interface("--layer", redis_url, "--processes", 2, "--ssl-certfile", file)
    server.wait_for("supervisor ready: 2 processes")
    start_worker(APP, "--layer", redis_url)
    before = serial(server, authority.client())
    file.write_bytes(b"nonsense")
    server.send_signal(signal.SIGHUP)
    server.wait_for(f"failed to start: the TLS certificate {file} cannot be used.*: the old processes stay")
    assert serial(server, authority.client()) == before
    authority.issue("server.pem")
    server.send_signal(signal.SIGHUP)
    server.wait_for("all processes are replaced")
    assert serial(server, authority.client()) != before
