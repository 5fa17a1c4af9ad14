"""SIGUSR2: which interface servers refuse it, and what it does while one starts."""

import os
import signal
from pathlib import Path

import pytest

from asgibus.cli import entry_points, interface, successor


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


def test_the_signal_does_not_end_a_process_that_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    monkeypatch.setattr(interface, "main", lambda: found.append(signal.getsignal(signal.SIGUSR2)))
    before = signal.getsignal(signal.SIGUSR2)
    try:
        entry_points.asgi_interface()
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert found == [signal.SIG_IGN]
