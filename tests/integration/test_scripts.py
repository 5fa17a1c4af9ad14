"""The scripts of the repository work in a fresh clone."""

import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_a_port_that_is_taken_is_passed_over_in_a_sentence() -> None:
    with socket.socket() as taken:
        with suppress(OSError):  # the port is in use, which is as good
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            taken.bind(("127.0.0.1", 8000))
            taken.listen()
        found = subprocess.run(
            [sys.executable, ROOT / "scripts" / "_port"], check=True, capture_output=True, text=True, timeout=50
        )
    assert int(found.stdout) > 8000
    assert found.stderr == f"Port 8000 is taken; this is at {int(found.stdout)}.\n"
