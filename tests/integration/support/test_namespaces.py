"""A link that loses packets says nothing, and loses nothing for good."""

import socket
import subprocess
import sys

import pytest

from support import namespaces

ECHO = """
import socket, sys
listening = socket.create_server((sys.argv[1], 0))
print(listening.getsockname()[1], flush=True)
peer = listening.accept()[0]
while data := peer.recv(100):
    peer.sendall(data)
"""


def test_lost_packets_are_silence() -> None:
    if reason := namespaces.why_not():
        pytest.skip(reason)
    with namespaces.Namespace() as namespace:
        command = namespace.command(sys.executable, "-c", ECHO, namespace.address)
        with subprocess.Popen(command, stdout=subprocess.PIPE) as peer:
            assert peer.stdout is not None
            port = int(peer.stdout.readline())
            with socket.create_connection((namespace.address, port), timeout=30) as client:
                client.sendall(b"one")
                assert client.recv(100) == b"one"
                namespace.lose_packets()
                client.sendall(b"two")
                client.settimeout(0.5)
                with pytest.raises(TimeoutError):
                    client.recv(100)
                with pytest.raises(TimeoutError):
                    socket.create_connection((namespace.address, port), timeout=0.2)
                assert client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
                namespace.heal()
                client.settimeout(10)
                assert client.recv(100) == b"two"  # TCP sends it again
