import socket
import stat
from pathlib import Path

import pytest

from asgibus.interface_server.settings import InterfaceSettings
from asgibus.interface_server.sockets import ListenError, describe, host_and_port, listening_socket
from asgibus.interface_server.tls import Tls


def test_a_port_is_described_as_a_url() -> None:
    with listening_socket(InterfaceSettings(port=0)) as listening:
        port = listening.getsockname()[1]
        assert describe(listening, tls=False) == f"http://127.0.0.1:{port}"
        assert describe(listening, tls=True) == f"https://127.0.0.1:{port}"


def test_a_unix_socket_is_open_to_other_users_and_left_alone_while_served(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with listening_socket(InterfaceSettings(uds=path)) as listening:
        assert describe(listening, tls=False) == f"unix:{path}"
        assert stat.S_IMODE(Path(path).stat().st_mode) == 0o666
        listening.listen(0)
        with pytest.raises(ListenError, match=f"cannot listen on {path}: Address already in use"):
            listening_socket(InterfaceSettings(uds=path))
    listening_socket(InterfaceSettings(uds=path)).close()


@pytest.mark.parametrize("mode", ["660", "600", "0777"])
def test_a_unix_socket_has_the_requested_mode(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "socket"
    with listening_socket(InterfaceSettings(uds=str(path), uds_mode=mode)):
        assert stat.S_IMODE(path.stat().st_mode) == int(mode, 8)


def test_an_existing_file_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("data")
    with pytest.raises(ListenError, match="there is something else than a socket"):
        listening_socket(InterfaceSettings(uds=str(path)))
    assert path.read_text() == "data"


@pytest.mark.parametrize(
    "settings",
    [
        *(
            InterfaceSettings(host=host, port=0)
            for host in ("203.0.113.1", "no.such.host.invalid", "256.1.1.1", "x" * 300, "a..b", "[::1]", "192.0.2.1")
        ),
        *(InterfaceSettings(uds=path) for path in ("/nowhere/socket", "/tmp/" + "x" * 300, "/tmp", __file__)),
        *(InterfaceSettings(fd=number) for number in (0, 9999, 2147483647)),
    ],
    ids=lambda settings: f"{settings.host} {settings.uds} {settings.fd}"[:60],
)
def test_unusable_addresses(settings: InterfaceSettings) -> None:
    with pytest.raises(ListenError, match="cannot listen on"):
        listening_socket(settings)


def test_no_certificate_no_tls() -> None:
    tls = Tls(InterfaceSettings())
    tls.load()
    assert tls.context is None


def test_an_invalid_certificate(tmp_path: Path) -> None:
    file = tmp_path / "cert"
    file.write_text("nonsense")
    with pytest.raises(ListenError, match="cannot be used"):
        Tls(InterfaceSettings(ssl_certfile=str(file))).load()


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        (("127.0.0.1", 80), ("127.0.0.1", 80)),
        (("::1", 80, 0, 0), ("::1", 80)),
        ("/run/socket", ("/run/socket", None)),
        (b"\0abstract", ("\0abstract", None)),
        ("", None),
        (None, None),
    ],
)
def test_addresses_of_the_scope(address: object, expected: object) -> None:
    assert host_and_port(address) == expected


def test_an_inherited_socket() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as inherited,
        listening_socket(InterfaceSettings(fd=inherited.fileno())) as adopted,
    ):
        assert adopted.getsockname() == inherited.getsockname()
        adopted.detach()
