"""Fixtures of the tests of the commands."""

import pytest

from asgibus.cli import run


@pytest.fixture(autouse=True)
def _no_exit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no command end the process of the tests, some seconds after its own end."""
    monkeypatch.setattr(run, "_exit_within", lambda seconds, code: None)
