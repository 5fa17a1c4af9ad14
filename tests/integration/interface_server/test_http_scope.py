"""HTTP scope of an app: behind proxies, with TLS, and for every kind of listener."""

import json
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from support.processes import LISTENING, Process, Processes
from support.raw import RawClient
from support.scopes import build_scope, get

APP = "interface_server.http_app:app"
EVERYWHERE = ["asgibus", "http.response.early_hint"]
Start = Callable[..., Process]


def test_every_key_of_the_scope(server: Process) -> None:
    with RawClient(server) as client:
        client.send(
            b"PUT /a%20b/%C3%BC?x=%20y&x HTTP/1.1\r\nHost: Test:80\r\nX-A:  1 \t\r\nx-A: 2\r\nEmpty:\r\n"
            b"Latin: gr\xfc\xdfe\r\nContent-Length: 2\r\n\r\nhi"
        )
        scope = json.loads(client.read_response().body)
        host, port = client.socket.getsockname()
    assert scope == {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "PUT",
        "scheme": "http",
        "path": "/a b/ü",
        "raw_path": "/a%20b/%C3%BC",
        "query_string": "x=%20y&x",
        "root_path": "",
        "headers": [
            ["host", "Test:80"],
            ["x-a", "1"],
            ["x-a", "2"],
            ["empty", ""],
            ["latin", "grüße"],
            ["content-length", "2"],
        ],
        "client": [host, port],
        "server": ["127.0.0.1", server.port],
        "state": {"made at start-up": "yes"},
        "extensions": EVERYWHERE,
        "body": "hi",
    }


@pytest.mark.parametrize(
    ("target", "path", "raw_path", "query"),
    [
        ("/", "/", "/", ""),
        ("/?", "/", "/", ""),
        ("//a//b/../c/.", "//a//b/../c/.", "//a//b/../c/.", ""),
        ("/a?b?c", "/a", "/a", "b?c"),
        ("/a#b?c", "/a", "/a", ""),
        ("/a?b#c?d", "/a", "/a", "b"),
        ("/%2F%3f%25", "//?%", "/%2F%3f%25", ""),
        ("/%zz%", "/%zz%", "/%zz%", ""),
        ("/%ff", "/\ufffd", "/%ff", ""),
        ("/+;=@:!$&'()*,~[]", "/+;=@:!$&'()*,~[]", "/+;=@:!$&'()*,~[]", ""),
        ("http://other.example", "/", "/", ""),
        ("http://other.example?q", "/", "/", "q"),
        ("HTTPS://me:pw@other.example:81/x/%41?q=1", "/x/A", "/x/%41", "q=1"),
    ],
)
def test_targets(server: Process, target: str, path: str, raw_path: str, query: str) -> None:
    scope = build_scope(server, get(target))
    assert (scope["path"], scope["raw_path"], scope["query_string"]) == (path, raw_path, query)
    assert scope["scheme"] == "http"
    if "other.example" in target:
        host = "other.example:81" if ":81" in target else "other.example"
        assert scope["headers"] == [["host", host]]  # RFC 9112 section 3.2.2: that of the target counts
    else:
        assert scope["headers"] == [["host", "test"]]


def test_asterisk_form_target(server: Process) -> None:
    scope = build_scope(server, b"OPTIONS * HTTP/1.1\r\nHost: test\r\n\r\n")
    assert (scope["method"], scope["path"], scope["raw_path"]) == ("OPTIONS", "*", "*")


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND"])
def test_methods(server: Process, method: str) -> None:
    with RawClient(server) as client:
        client.send(f"{method} /headers HTTP/1.1\r\nHost: test\r\nContent-Length: 3\r\n\r\na=b".encode())
        response = client.read_response(method)
        assert (response.status, response.get("a")) == (200, "b")


def test_http_1_0_needs_no_host(server: Process) -> None:
    scope = build_scope(server, b"GET / HTTP/1.0\r\n\r\n")
    assert (scope["http_version"], scope["headers"]) == ("1.0", [])


def test_the_state_is_a_copy_for_every_request(server: Process) -> None:
    for _ in range(2):
        assert build_scope(server, get("/"))["state"] == {"made at start-up": "yes"}


def test_root_path(start_interface: Start) -> None:
    scope = build_scope(start_interface("--root-path", "/api", app=APP), get("/users%20?q"))
    assert (scope["root_path"], scope["path"], scope["raw_path"]) == ("/api", "/api/users ", "/api/users%20")


# Behind a proxy.

FORWARDED = ("X-Forwarded-For: 203.0.113.7, 10.0.0.9", "X-Forwarded-Proto: https")


def test_headers_of_a_trusted_proxy_are_used(start_interface: Start) -> None:
    server = start_interface("--forwarded-allow-ips", "127.0.0.1,10.0.0.0/8", app=APP)
    scope = build_scope(server, get("/", *FORWARDED))
    assert (scope["client"], scope["scheme"]) == (["203.0.113.7", 0], "https")


@pytest.mark.parametrize("options", [("--no-proxy-headers",), ("--forwarded-allow-ips", "10.0.0.1")])
def test_headers_of_other_peers_are_ignored(start_interface: Start, options: tuple[str, ...]) -> None:
    scope = build_scope(start_interface(*options, app=APP), get("/", *FORWARDED))
    assert (scope["client"][0], scope["scheme"]) == ("127.0.0.1", "http")


# Other listeners.


def test_a_unix_socket(start_interface: Start, tmp_path: Path) -> None:
    path = str(tmp_path / "http.sock")
    server = start_interface("--uds", path, "--forwarded-allow-ips", "unix", app=APP)
    assert server.uds == path
    assert Path(path).stat().st_mode & 0o777 == 0o666
    scope = build_scope(server, get("/"))
    assert (scope["client"], scope["server"], scope["scheme"]) == (None, [path, None], "http")
    scope = build_scope(server, get("/", *FORWARDED))
    assert (scope["client"], scope["scheme"]) == (["10.0.0.9", 0], "https")


def test_a_unix_socket_with_a_mode(start_interface: Start, tmp_path: Path) -> None:
    path = tmp_path / "http.sock"
    server = start_interface("--uds", path, "--uds-mode", "660", app=APP)
    assert path.stat().st_mode & 0o777 == 0o660
    assert build_scope(server, get("/"))["path"] == "/"


def test_only_an_unused_unix_socket_is_replaced(start_interface: Start, tmp_path: Path) -> None:
    path = str(tmp_path / "http.sock")
    start_interface("--uds", path, app=APP).kill()
    assert build_scope(start_interface("--uds", path, app=APP), get("/"))["path"] == "/"
    second = start_interface("--uds", path, app=APP, ready=False)
    assert second.wait() == 1
    assert f"cannot listen on {path}: Address already in use" in second.log()


def test_a_port_in_use(start_interface: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        server = start_interface("--port", port, app=APP, ready=False)
        assert server.wait() == 1
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in server.log()


def test_an_inherited_socket(processes: Processes, tmp_path: Path) -> None:
    launcher = (
        "import os, socket, sys\n"
        "listening = socket.create_server(('127.0.0.1', 0))\n"
        "listening.set_inheritable(True)\n"
        "os.execv(sys.executable, [sys.executable, '-m', 'asgibus.cli.interface', sys.argv[1],"
        " '--fd', str(listening.fileno())])\n"
    )
    server = processes.start("interface", [sys.executable, "-c", launcher, APP], ready=LISTENING)
    server.url = server.wait_for(LISTENING)["url"]
    assert build_scope(server, get("/"))["server"] == ["127.0.0.1", server.port]


def test_an_ipv6_address(start_interface: Start) -> None:
    if not socket.has_ipv6:
        pytest.skip("no IPv6")
    server = start_interface("--host", "::1", "--port", 0, app=APP)
    assert server.url.startswith("http://[::1]:")
    with socket.create_connection(("::1", server.port)) as client:
        client.sendall(get("/refuse-early", "Connection: close"))
        assert client.recv(65536).startswith(b"HTTP/1.1 403")
