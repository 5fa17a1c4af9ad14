"""The scripts of the repository work in a fresh clone."""

import os
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

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


@pytest.mark.parametrize(
    ("variables", "why"),
    [
        ({"CC": "no-compiler"}, "the C compiler no-compiler is missing"),
        ({"ASGIBUS_PURE": "1"}, "ASGIBUS_PURE is set"),
    ],
)
def test_an_installation_that_must_be_compiled_says_why_it_cannot(variables: dict[str, str], why: str) -> None:
    pytest.importorskip("setuptools")
    result = subprocess.run(
        [sys.executable, "setup.py", "egg_info"],
        check=False,
        env={**os.environ, **variables, "ASGIBUS_COMPILED": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert result.returncode != 0
    assert result.stderr.strip() == f"asgibus cannot be compiled, as ASGIBUS_COMPILED demands: {why}"
