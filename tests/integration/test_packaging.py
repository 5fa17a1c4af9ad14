"""What a stranger gets with `pip install asgibus`: built, installed and run in a virtual environment of its own."""

import os
import subprocess
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

COMMANDS = {"asgi-interface": "asgibus.interface_server", "asgi-worker": "asgibus.worker"}
PACKAGES = [path.name for path in (ROOT / "src" / "asgibus").iterdir() if path.is_symlink()]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_built_package_is_whole_and_its_commands_run(tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    pip = [str(tmp_path / "venv" / "bin" / "python"), "-m", "pip", "--disable-pip-version-check"]
    run(*pip, "install", "--quiet", "build")

    # Builds the sdist, and the wheel from the sdist.
    run(pip[0], "-m", "build", "--outdir", tmp_path, ROOT)
    (sdist,) = tmp_path.glob("asgibus-*.tar.gz")
    (wheel,) = tmp_path.glob("asgibus-*.whl")

    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        assert not [entry.filename for entry in archive.infolist() if entry.external_attr >> 28 == 0o12], "symlinks"
    assert "asgibus/py.typed" in names
    for package in PACKAGES:
        paths = [path for path in (ROOT / package).rglob("*") if path.suffix in {".py", ".lua"}]
        sources = {f"asgibus/{path.relative_to(ROOT)}" for path in paths}
        assert sources <= set(names), "not packaged"
    assert {name.partition("/")[0] for name in names if ".dist-info/" not in name} == {"asgibus"}

    with tarfile.open(sdist) as archive:
        files = [member.name.partition("/")[2] for member in archive.getmembers()]
    assert "LICENSE" in files
    assert [name for name in files if name.endswith("protocol/__init__.py")]
    assert [name for name in files if name.endswith("layers/redis/scripts/renew_lease.lua")]

    run(*pip, "install", "--quiet", wheel)
    for script, module in COMMANDS.items():
        # From an empty folder, so that nothing of the repository is found by accident.
        usages = [
            run(tmp_path / "venv" / "bin" / script, "--help", cwd=elsewhere(tmp_path)),
            run(pip[0], "-m", module, "--help", cwd=elsewhere(tmp_path)),
        ]
        for usage in usages:
            assert usage.startswith("Usage:")
            assert "--layer" in usage
        version = run(pip[0], "-c", "import asgibus; print(asgibus.__file__)", cwd=elsewhere(tmp_path))
        assert version.startswith(str(tmp_path))


def elsewhere(tmp_path: Path) -> Path:
    folder = tmp_path / "elsewhere"
    folder.mkdir(exist_ok=True)
    return folder


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """The output of the command; an AssertionError with all it wrote if it fails."""
    env = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "VIRTUAL_ENV"}}
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, cwd=cwd, env=env, check=False
    )
    assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done.stdout
