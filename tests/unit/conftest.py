"""The unit tests start no process and use no Redis. A test that does fails, and belongs in tests/integration."""

import subprocess
from typing import NoReturn

import pytest


def _refuse(*args: object, **options: object) -> NoReturn:
    pytest.fail(f"a unit test starts no process: {args}")


@pytest.fixture(autouse=True)
def _no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "Popen", _refuse)


@pytest.fixture(scope="session")
def _real_redis() -> NoReturn:
    pytest.fail("a unit test uses no Redis")
