"""Workers are upgraded from the last release, and rolled back, while sockets chat.

To run it, which installs the last release first: `scripts/test tests/chaos/test_upgrade.py`.
"""

from collections.abc import Callable
from pathlib import Path

from chaos.crowd import Crowd
from chaos.notes import Notes
from chaos.scale import by_form
from support.processes import Process

Start = Callable[..., Process]
Figures = Callable[[object], None]

SOCKETS = by_form(50, 1000)
RATE = by_form(200, 500)


def test_an_upgrade_of_workers_and_the_way_back_close_no_socket(
    start_chaos_interface: Start,
    start_chaos_worker: Start,
    last_release_python: Path,
    notes: Notes,
    figures: Figures,
) -> None:
    """Half of the sockets are at an interface server of each release."""
    interfaces = [start_chaos_interface(python=python) for python in (None, last_release_python)]
    worker = start_chaos_worker("--resume", python=last_release_python)
    half, rate = SOCKETS // 2, RATE / 2
    with (
        Crowd(interfaces, "/echo", sockets=half, rate=rate, save=1) as echo,
        Crowd(interfaces, "/room", sockets=half, rate=rate) as room,
    ):
        for crowd in (echo, room):
            crowd.begin()
            crowd.wait_each_answered()
        for python in (None, last_release_python):
            old, worker = worker, start_chaos_worker("--resume", python=python)
            old.terminate()
            assert old.wait(60) == 0
            for crowd in (echo, room):
                crowd.wait_each_answered()
                for member, known in zip(crowd.members, crowd.probe(), strict=True):
                    assert (known["name"], known["pid"]) == (member.name, worker.pid)
        for crowd in (echo, room):
            report = crowd.finish()
            figures(f"{crowd.label}: {report}")
            report.assert_whole()
    assert not notes.all("disorder")
    assert not notes.all("send failed")
    for process in (*interfaces, worker):
        assert " ERROR " not in process.whole_log(), process
