"""The last release of asgibus, installed into an environment of its own.

Its code comes from the history of git. The environment is a folder of the repository, `.venv-last-release`, so that it
is made once, in a quarter of a minute, and not by each run of the tests.
"""

import fcntl
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

REVISION = "c2a6fb46a214c65a0463892b5f25bae5581ac577"
"""The last release, as git names it: a commit until 0.1.0 is out, and then a tag. Each release changes this line."""

NAME = "0.1.0+last"
"""The name that the installed copy gives its release: as long as both are unreleased, they have the same."""

EXTRAS = "encryption,metrics"

REPOSITORY = Path(__file__).resolve().parent.parent.parent
ENVIRONMENT = REPOSITORY / ".venv-last-release"


class Unavailable(Exception):
    """There is no last release to install. The text says why, in one line."""


def install() -> Path:
    """Make the environment unless it is there, and return its Python. Raises Unavailable.

    Processes that call this at the same time wait for each other.
    """
    find_revision()
    ENVIRONMENT.mkdir(exist_ok=True)
    python, stamp = ENVIRONMENT / "python" / "bin" / "python", ENVIRONMENT / "stamp"
    want = f"{REVISION} {NAME} {EXTRAS} {sys.version} {ENVIRONMENT}"  # an environment does not survive being moved
    with (ENVIRONMENT / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not stamp.exists() or stamp.read_text() != want:
            stamp.unlink(missing_ok=True)
            _make(python)
            stamp.write_text(want)
    return python


def find_revision() -> None:
    """Check that the last release is in the history of git. Raises Unavailable."""
    if shutil.which("git") is None:
        raise Unavailable("the last release cannot be installed: there is no git")
    found = _git("cat-file", "-e", f"{REVISION}^{{commit}}")
    if found.returncode:
        shallow = _git("rev-parse", "--is-shallow-repository").stdout.strip()
        why = {
            b"true": "this clone is shallow: git fetch --unshallow",
            b"false": "the history of this clone does not have it",
        }
        raise Unavailable(f"no last release ({REVISION[:7]}): {why.get(shallow, 'this is no clone of the repository')}")


def _make(python: Path) -> None:
    home = python.parent.parent
    _run(sys.executable, "-m", "venv", "--clear", home)
    with tempfile.TemporaryDirectory() as folder:
        archive = _git("archive", "--format=tar", REVISION)
        subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)
        versions = Path(folder, "layers", "versions.py")
        named, count = re.subn(
            r'^RELEASE: Final = ".*"', f'RELEASE: Final = "{NAME}"', versions.read_text(), flags=re.MULTILINE
        )
        assert count == 1, "the release has its name elsewhere"
        versions.write_text(named)
        _run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", f"{folder}[{EXTRAS}]")


def _git(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    # In a container, the clone may belong to another user.
    command = ["git", "-C", str(REPOSITORY), "-c", f"safe.directory={REPOSITORY}", *arguments]
    return subprocess.run(command, capture_output=True, check=False)


def _run(*command: str | Path) -> None:
    """Run a command. Raises AssertionError with the end of its output."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"ASGIBUS_PURE": "1"}
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(map(str, command))}:\n{done.stdout[-3000:]}"
