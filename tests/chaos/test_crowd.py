"""The crowd reports faults: none in a working bus, and each kind of fault that occurs."""

from collections.abc import Callable

import pytest

from chaos.crowd import Crowd
from chaos.member import Numbers
from support.processes import Process

Start = Callable[..., Process]


@pytest.mark.parametrize("path", ["/echo", "/room"])
def test_a_bus_without_faults_has_a_clean_report(
    path: str, start_chaos_interface: Start, start_chaos_worker: Start, figures: Callable[[object], None]
) -> None:
    start_chaos_worker()
    interface = start_chaos_interface()
    with Crowd(interface, path, sockets=40, rate=400) as crowd:
        crowd.begin()
        crowd.wait_answered(400)
        report = crowd.finish()
        assert {answer["attempt"] for answer in crowd.probe()} == {1}
    figures(report)
    report.assert_whole()
    assert report.received == report.sent * (10 if path == "/room" else 1)


@pytest.mark.parametrize(
    ("received", "sent", "lost", "doubled", "disordered"),
    [
        ([0, 1, 2], 3, 0, 0, 0),
        ([0, 1], 3, 1, 0, 0),
        ([0, 2], 3, 1, 0, 0),
        ([], 3, 3, 0, 0),
        ([0, 1, 0, 1, 2], 3, 0, 2, 0),
        ([0, 2, 1], 3, 0, 0, 1),
        ([2, 2, 1, 3], 5, 2, 1, 1),
    ],
)
def test_numbers_count_lost_doubled_and_disordered_messages(
    received: list[int], sent: int, lost: int, doubled: int, disordered: int
) -> None:
    numbers = Numbers()
    for number in received:
        numbers.note(number)
    assert (numbers.lost(sent), numbers.doubled, numbers.disordered) == (lost, doubled, disordered)
