"""WebSockets whose worker has died: they are offered a few at a time, in order."""

import pytest

from asgibus.interface_server.connections.takeovers import AT_ONCE
from asgibus.protocol.connect_request import is_taken_over
from asgibus.protocol.events import HANDOVER
from support.recording import EVENT, OTHER, WORKER, Table, accept, claim_frame

MANY = 3 * AT_ONCE


@pytest.fixture
def table() -> Table:
    table = Table(resume_timeout=60.0)
    for _ in range(MANY):
        table.open_accepted()
    return table


def offered(table: Table) -> list[int]:
    """Return the numbers of the connections that were offered for a further run, in order."""
    return [opening.connection for opening in table.openings if opening.attempt > 1]


def test_they_are_offered_in_order_as_workers_begin_them(table: Table) -> None:
    table.dead()
    assert offered(table) == list(range(1, AT_ONCE + 1))
    table.frames(claim_frame(3, 2), claim_frame(1, 2), sender=OTHER)
    assert offered(table) == list(range(1, AT_ONCE + 3))
    for number in range(1, MANY + 1):
        if number not in (1, 3):
            table.frames(claim_frame(number, 2), sender=OTHER)
    assert offered(table) == list(range(1, MANY + 1))
    assert all(is_taken_over(opening) for opening in table.openings if opening.attempt > 1)


def test_first_connections_do_not_wait_for_them(table: Table) -> None:
    table.dead()
    table.open()
    assert table.openings[-1].connection == MANY + 1
    assert not is_taken_over(table.openings[-1])


def test_hand_overs_do_not_wait(table: Table) -> None:
    table.dead()
    number = MANY + 1
    table.open()
    table.frames(accept(number, resumable=True), (EVENT, number, 1, 1, 0, HANDOVER), sender=OTHER)
    assert offered(table)[-1] == number
    assert not is_taken_over(table.openings[-1])


def test_what_was_taken_over_is_handed_over_without_a_wait(table: Table) -> None:
    table.dead()
    table.frames(accept(1, attempt=2, resumable=True), (EVENT, 1, 2, 1, 0, HANDOVER), sender=OTHER)
    again = [opening for opening in table.openings if opening.attempt == 3]
    assert [opening.connection for opening in again] == [1]
    assert not is_taken_over(again[0])


def test_clients_that_leave_make_room(table: Table) -> None:
    closed = table.connections._open[AT_ONCE + 2]
    closed.resumable = False
    table.dead()
    for number in (1, 2):
        connection = table.connections._open[number]
        connection.resumable = False  # so that no app has to get the disconnect
        connection.client_gone()
    table.pass_time(0.25)
    assert offered(table)[AT_ONCE:] == [AT_ONCE + 1, AT_ONCE + 3], "one that was not resumable was closed"


def test_they_wait_for_longer_than_the_timeout_while_others_are_begun(table: Table) -> None:
    table.dead()
    for number in range(1, MANY + 1):
        if number % 4 == 1:
            table.pass_time(10.0)
        table.frames(claim_frame(number, 2), sender=OTHER)
    assert table.connections.now >= 2 * 60
    assert len(table.connections) == MANY, "none was given up"


def test_without_a_worker_all_are_given_up_at_once(table: Table) -> None:
    terminators = [connection.terminator for connection in table.connections]
    table.dead()
    table.pass_time(30.0)
    assert len(table.connections) == MANY
    table.pass_time(31.0)
    assert len(table.connections) == 0
    assert {code for terminator in terminators for _, code in terminator.failed} == {1013}
    assert offered(table) == list(range(1, AT_ONCE + 1))


def test_they_wait_again_after_a_further_death(table: Table) -> None:
    table.dead()
    for number in range(1, AT_ONCE + 1):
        table.frames(accept(number, attempt=2, resumable=True), sender=OTHER)
    table.dead(OTHER)
    assert offered(table)[-AT_ONCE:] == list(range(AT_ONCE + 1, 2 * AT_ONCE + 1)), "the others come first"
    for number in range(AT_ONCE + 1, MANY + 1):
        table.frames(claim_frame(number, 2), sender=WORKER)
    assert offered(table)[-AT_ONCE:] == list(range(1, AT_ONCE + 1))
