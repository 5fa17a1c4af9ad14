"""`--env-file`: before the app is imported, and before other options are read from the environment."""

from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from support.processes import Process

Start = Callable[..., Process]

APP = """
import os

NAMES = " ".join(str(os.environ.get(name)) for name in ("FIRST", "SECOND", "THIRD"))


async def app(scope, receive, send):
    assert scope["type"] == "http"
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": NAMES.encode()})
"""


@pytest.fixture(autouse=True)
def _app(tmp_path: Path) -> None:
    (tmp_path / "env_app.py").write_text(APP)


def test_set_variables_override_the_file_for_app_and_options(start_interface: Start, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(
        "FIRST='of the file'\nexport SECOND=${FIRST}!\nTHIRD=of the file\nASGIBUS_POOL=blue\nASGIBUS_PREFIX=file\n"
    )
    env = {"THIRD": "set", "ASGIBUS_PREFIX": "set"}
    server = start_interface("--env-file", ".env", app="env_app:app", env=env)
    assert httpx.get(server.url, trust_env=False).text == "of the file of the file! set"
    server.wait_for("pool blue")


def test_the_environment_names_the_file(start_interface: Start, tmp_path: Path) -> None:
    (tmp_path / "other").write_text("FIRST=1\nASGIBUS_POOL=blue\n")
    server = start_interface(app="env_app", env={"ASGIBUS_ENV_FILE": "other"})
    assert httpx.get(server.url, trust_env=False).text == "1 None None"
    server.wait_for("pool blue")


def test_a_worker_reads_the_file(redis_url: str, start_interface: Start, start_worker: Start, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(f"FIRST=1\nASGIBUS_LAYER={redis_url}\n")
    start_worker("env_app", "--env-file", ".env")
    server = start_interface("--env-file", ".env")
    assert httpx.get(server.url, trust_env=False).text == "1 None None"


def test_a_binary_file(start_interface: Start, tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe=\x00")
    server = start_interface("--env-file", "binary", app="env_app", ready=False)
    assert server.wait() == 2
    assert "Error: Invalid value for '--env-file'" in server.log()
    assert "the file 'binary' cannot be read: it is not text" in server.log()
