"""The tests of the example, run as its author runs them: in its folder, with its own settings."""

import os
import subprocess
import sys
from pathlib import Path

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "tested_chat"


def test_the_example_passes_its_own_tests() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "anyio"]
    env = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # plugins of other packages take a second to load
    completed = subprocess.run(command, cwd=EXAMPLE, capture_output=True, text=True, check=False, timeout=50, env=env)
    assert completed.returncode == 0, completed.stdout + completed.stderr
    assert "8 passed" in completed.stdout
