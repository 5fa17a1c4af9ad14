"""Connections behind a proxy that speaks the PROXY protocol, with TLS and without."""

import contextlib
import json
import os
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from support.certificates import Authority
from support.deadline import in_time, wait_until
from support.processes import APPS, TESTS, Process, Processes
from support.proxy_headers import BAD, GOOD, IPV4, TLVS, version_2
from support.raw import RawClient
from support.websocket import RawWebSocket

APP = "interface_server.http_app:app"
Start = Callable[..., Process]
V1 = b"PROXY TCP4 203.0.113.7 192.0.2.1 4711 443\r\n"
REQUEST = b"GET / HTTP/1.1\r\nHost: test\r\n"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module", params=["uvloop", "asyncio"])
def loop(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Provide the environment in which a server runs on this event loop."""
    env = {}
    if request.param == "uvloop":
        pytest.importorskip("uvloop")
    else:
        site = tmp_path_factory.mktemp("site")
        (site / "sitecustomize.py").write_text(
            "import importlib.util\n"
            "find = importlib.util.find_spec\n"
            "importlib.util.find_spec = lambda name, *rest: None if name == 'uvloop' else find(name, *rest)\n"
        )
        env["PYTHONPATH"] = os.pathsep.join([str(site), str(TESTS), str(APPS), os.environ.get("PYTHONPATH", "")])
    return env


@pytest.fixture
def proxied(loop: dict[str, str], start_interface: Start) -> Callable[..., Process]:
    """Start an interface server that expects PROXY headers, on each event loop."""

    def start(*options: object) -> Process:
        return start_interface("--proxy-protocol", *options, app=APP, env=loop)

    return start


@pytest.fixture(scope="module")
def shared_server(loop: dict[str, str], shared_processes: Processes) -> Process:
    return shared_processes.start_interface("--proxy-protocol", app=APP, env=loop)


@pytest.fixture
def server(shared_server: Process) -> Process:
    """Return the server with --proxy-protocol that tests of this module share."""
    shared_server.mark()
    return shared_server


def build_scope(client: RawClient, *headers: str) -> dict[str, Any]:
    response = client.request("GET", "/", *headers)
    assert response.status == 200
    scope: dict[str, Any] = json.loads(response.body)
    return scope


def test_header_addresses_are_in_the_scope(server: Process) -> None:
    for header in (V1, version_2(0x11, IPV4), version_2(0x11, IPV4 + TLVS)):
        with RawClient(server) as client:
            client.send(header)
            for _ in range(2):
                scope = build_scope(client)
                assert (scope["client"], scope["server"]) == (["203.0.113.7", 4711], ["192.0.2.1", 443])
                assert scope["scheme"] == "http"
    assert '203.0.113.7:4711 - "GET / HTTP/1.1" 200' in server.log()


@pytest.mark.parametrize("name", ["v1 unknown", "v2 local with addresses", "v2 unspecified with more"])
def test_a_header_without_client_keeps_the_proxy_addresses(server: Process, name: str) -> None:
    with RawClient(server) as client:
        client.send(GOOD[name][0])
        scope = build_scope(client, "X-Forwarded-For: 6.6.6.6", "X-Forwarded-Proto: https")
        assert scope["scheme"] == "http"
        assert (scope["client"][0], scope["server"]) == ("127.0.0.1", ["127.0.0.1", server.port])


def test_header_and_request_in_any_pieces(server: Process) -> None:
    body = bytes(range(256)) * 100
    request = b"POST /body HTTP/1.1\r\nHost: test\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    with RawClient(server) as client:
        client.send(V1 + request)
        assert client.read_response().body == body
    wire = version_2(0x11, IPV4 + TLVS) + REQUEST + b"\r\n"
    with RawClient(server) as client:
        client.send_pieces(wire)
        assert json.loads(client.read_response().body)["client"] == ["203.0.113.7", 4711]


@pytest.mark.parametrize("header", [V1, version_2(0x11, IPV4 + TLVS)])
def test_a_header_before_the_tls_handshake(
    proxied: Callable[..., Process], authority: Authority, header: bytes
) -> None:
    server = proxied("--ssl-certfile", authority.issue("server.pem"))
    body = bytes(range(256)) * 4096
    with RawClient(server, tls=authority.client(), before_tls=header) as client:
        scope = build_scope(client)
        assert (scope["client"], scope["scheme"]) == (["203.0.113.7", 4711], "https")
        assert "tls" in scope["extensions"]
        assert client.request("POST", "/body", body=body).body == body


def test_header_and_tls_handshake_in_one_segment(proxied: Callable[..., Process], authority: Authority) -> None:
    server = proxied("--ssl-certfile", authority.issue("server.pem"))
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = authority.client().wrap_bio(incoming, outgoing, server_hostname="localhost")
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as plain:
        header = V1
        while True:
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                plain.sendall(header + outgoing.read())
                header = b""
                incoming.write(plain.recv(65536))
        tls.write(REQUEST + b"Connection: close\r\n\r\n")
        plain.sendall(outgoing.read())
        text = b""
        while b'"client": ["203.0.113.7", 4711]' not in text:
            data = plain.recv(65536)
            assert data, text
            incoming.write(data)
            with contextlib.suppress(ssl.SSLWantReadError):
                while part := tls.read():
                    text += part


@pytest.mark.parametrize("name", ["a request", "a handshake", "v1 LF alone", "v1 port too large", "v2 family 4"])
def test_an_invalid_header_is_rejected(server: Process, name: str) -> None:
    with RawClient(server) as client:
        client.send(BAD[name][0])
        assert client.read_until_close() == b""
    with RawClient(server) as client:
        client.send(V1)
        assert build_scope(client)["client"] == ["203.0.113.7", 4711]


def test_a_missing_header_times_out(proxied: Callable[..., Process]) -> None:
    server = proxied("--head-timeout", 0.3)
    for beginning in (b"", V1[:20], version_2(0x11, IPV4)[:20]):
        with RawClient(server) as client:
            client.send(beginning)
            assert client.read_until_close(2) == b""
    with RawClient(server) as client:
        client.send(V1[:20])
        client.half_close()
        assert client.read_until_close() == b""
    why = "no PROXY header: the connection was closed before it was complete"
    server.wait_for(f"a connection from 127.0.0.1 was rejected: {why}")


def test_a_missing_tls_handshake_times_out(proxied: Callable[..., Process], authority: Authority) -> None:
    server = proxied("--ssl-certfile", authority.issue("server.pem"), "--head-timeout", 0.3)
    for behind in (b"", b"no handshake at all\r\n\r\n"):
        with RawClient(server) as client:
            client.send(V1 + behind)
            client.read_until_close(3)
    with RawClient(server, tls=authority.client(), before_tls=V1) as client:
        assert build_scope(client)["scheme"] == "https"


def test_only_trusted_proxies_may_connect(start_interface: Start) -> None:
    server = start_interface("--proxy-protocol", "--forwarded-allow-ips", "10.0.0.0/8", app=APP)
    with RawClient(server) as client:
        client.send(V1)
        assert client.read_until_close() == b""
    server.wait_for("a connection from 127.0.0.1 was rejected: it is no trusted proxy")


def test_forwarding_headers_are_trusted_by_the_header_address(start_interface: Start) -> None:
    """Forwarding headers are trusted by the address in the PROXY header, not by that of the connected proxy."""
    server = start_interface("--proxy-protocol", "--forwarded-allow-ips", "127.0.0.1,203.0.113.0/24", app=APP)
    with RawClient(server) as client:
        client.send(V1)
        assert build_scope(client, "X-Forwarded-For: 198.51.100.9")["client"] == ["198.51.100.9", 0]
    with RawClient(server) as client:
        client.send(V1.replace(b"203.0.113.7", b"198.51.100.1"))
        assert build_scope(client, "X-Forwarded-For: 198.51.100.9")["client"] == ["198.51.100.1", 4711]


def test_a_unix_socket(proxied: Callable[..., Process], tmp_path: Path) -> None:
    server = proxied("--uds", tmp_path / "s", "--forwarded-allow-ips", "unix")
    with RawClient(server) as client:
        client.send(V1)
        assert build_scope(client)["client"] == ["203.0.113.7", 4711]


def test_websockets(start_interface: Start) -> None:
    server = start_interface("--proxy-protocol", app="interface_server.websocket_app:app")
    with RawWebSocket(server, "/show-scope", before=V1) as client:
        assert b'"client": ["203.0.113.7", 4711]' in client.read_frame()[1]


def test_a_stop_does_not_wait_for_headers(proxied: Callable[..., Process]) -> None:
    server = proxied()
    with RawClient(server) as silent, RawClient(server) as served:
        served.send(V1)
        assert build_scope(served)["path"] == "/"
        started = time.monotonic()
        server.terminate()
        assert silent.read_until_close() == b""
        with pytest.raises(ConnectionRefusedError):
            RawClient(server)
        assert server.wait() == 0
        in_time(time.monotonic() - started, 3)


@contextmanager
def nginx(binary: str, folder: Path, configuration: str) -> Iterator[None]:
    (folder / "nginx.conf").write_text(configuration)
    process = subprocess.Popen(
        [binary, "-p", folder, "-c", folder / "nginx.conf", "-e", folder / "error.log", "-g", "daemon off;"],
        stderr=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        process.terminate()
        process.wait(30)


STREAM = Path("/usr/lib/nginx/modules/ngx_stream_module.so")  # from Debian's package libnginx-mod-stream


@pytest.mark.parametrize("tls", [False, True])
def test_nginx(
    start_interface: Start, authority: Authority, program: Callable[[str], str], tmp_path: Path, tls: bool
) -> None:
    binary = program("nginx")
    if not STREAM.exists():
        pytest.skip("nginx has no stream module here")
    options = ("--ssl-certfile", authority.issue("server.pem")) if tls else ()
    server = start_interface("--proxy-protocol", *options, app=APP)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    configuration = f"""
        load_module {STREAM};
        pid {tmp_path}/nginx.pid;
        events {{}}
        stream {{
            server {{ listen 127.0.0.1:{port}; proxy_pass 127.0.0.1:{server.port}; proxy_protocol on; }}
        }}
    """
    with nginx(binary, tmp_path, configuration):

        def listens() -> bool:
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", port)) == 0

        wait_until(listens)
        with RawClient(("127.0.0.1", port), tls=authority.client() if tls else None) as client:
            address = list(client.socket.getsockname())
            scope = build_scope(client)
            assert (scope["client"], scope["server"]) == (address, ["127.0.0.1", port])
