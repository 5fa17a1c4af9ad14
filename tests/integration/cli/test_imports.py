"""The modules that a command does not load: each of them would delay every start."""

import subprocess
import sys

import pytest

EXTRAS = {"asgibus.cli.admin", "prometheus_client", "watchfiles", "yaml", "cryptography", "importlib.resources.readers"}


@pytest.mark.parametrize(
    ("command", "needless"),
    [
        ("asgibus.cli.interface", EXTRAS | {"asgibus.layers.memory", "asgibus.layers.redis"}),
        (
            "asgibus.cli.worker",
            EXTRAS
            | {
                "asgibus.layers.memory",
                "asgibus.interface_server.server",
                "httptools",
                "importlib.metadata",
                "websockets",
            },
        ),
    ],
)
def test_a_command_loads_only_what_every_start_needs(command: str, needless: set[str]) -> None:
    program = f"import sys, {command}; print(*sys.modules, sep='\\n')"
    ran = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True)
    assert needless & set(ran.stdout.split()) == set()
