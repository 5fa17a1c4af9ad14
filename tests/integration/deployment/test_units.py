"""The units of systemd, as systemd itself reads them."""

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

DEPLOY = Path(__file__).parents[3] / "deploy"
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_systemd_finds_no_fault(unit: Path, program: Callable[[str], str], tmp_path: Path) -> None:
    commands = tmp_path / "bin"
    commands.mkdir()
    for name in ("asgi-interface", "asgi-worker"):
        shutil.copy("/bin/true", commands / name)
    copy = tmp_path / unit.name
    text = unit.read_text()
    assert (
        text.count("/srv/app/.venv/bin/")
        == len(re.findall(r"^Exec\w+=/srv/app/.venv/bin/asgi-", text, re.MULTILINE))
        > 0
    )
    copy.write_text(text.replace("/srv/app/.venv/bin", str(commands)))

    verified = subprocess.run(
        [program("systemd-analyze"), "verify", "--man=no", str(copy)],
        check=False,
        capture_output=True,
        text=True,
        timeout=30,
    )

    assert (verified.returncode, verified.stdout + verified.stderr) == (0, "")


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_a_unit_restarts_without_limit_and_waits_for_redis(unit: Path) -> None:
    lines = unit.read_text().splitlines()
    assert {"Type=notify", "Restart=always", "StartLimitIntervalSec=0", "Environment=ASGIBUS_WAIT_FOR_LAYER=300"} <= {
        *lines
    }
    # systemd must wait longer than the process, or systemd would restart a waiting process.
    (start,) = [line.removeprefix("TimeoutStartSec=") for line in lines if line.startswith("TimeoutStartSec=")]
    assert int(start.removesuffix("min")) * 60 > 300
