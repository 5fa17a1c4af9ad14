"""The scripts of the repository work in a fresh clone."""

import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_a_port_in_use_is_skipped_with_a_message() -> None:
    with socket.socket() as blocker:
        with suppress(OSError):  # the port is in use already
            blocker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            blocker.bind(("127.0.0.1", 8000))
            blocker.listen()
        result = subprocess.run(
            [sys.executable, ROOT / "scripts" / "_port"], check=True, capture_output=True, text=True, timeout=50
        )
    assert int(result.stdout) > 8000
    assert result.stderr == f"Port 8000 is taken; this is at {int(result.stdout)}.\n"
