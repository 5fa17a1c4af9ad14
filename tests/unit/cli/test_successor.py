"""Which interface servers refuse SIGUSR2."""

import os
from pathlib import Path

import pytest

from asgibus.cli import successor


@pytest.mark.parametrize(
    ("parent", "first", "expected"),
    [
        (0, "asgi-interface", True),
        (1, "docker-init", True),
        (1, "tini", True),
        (1, "systemd", False),
        (1, None, False),
        (4711, "docker-init", False),
    ],
)
def test_the_command_of_a_container_is_known(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, parent: int, first: str | None, *, expected: bool
) -> None:
    name = tmp_path / "comm"
    if first is not None:
        name.write_text(f"{first}\n")
    monkeypatch.setattr(os, "getppid", lambda: parent)
    monkeypatch.setattr(successor, "FIRST_PROCESS_NAME", name)
    assert successor.ends_a_container() is expected
