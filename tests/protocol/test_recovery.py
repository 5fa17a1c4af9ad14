"""Which connections are offered again when their run has ended before them, and when that is not tried any more."""

import itertools

import pytest

from asgibus.protocol.events import MESSAGE_RECEIVED
from asgibus.protocol.recovery import (
    KILLS,
    START_KILLS,
    Deaths,
    Ending,
    may_run_http_again,
    may_run_websocket_again,
)
from asgibus.protocol.states import App

HTTP_STATES = [App.WAITING, App.STARTED, App.STARTED_TRAILERS, App.TRAILERS, App.COMPLETE]
WEBSOCKET_STATES = [App.HANDSHAKE, App.OPEN, App.DENYING, App.COMPLETE]
METHODS = ["GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE", "POST", "PATCH", "CONNECT", "get", "PROPFIND", ""]


@pytest.mark.parametrize(("state", "method", "whole"), [*itertools.product(HTTP_STATES, METHODS, [True, False])])
def test_requests_that_may_run_again(state: App, method: str, whole: bool) -> None:
    idempotent = method in ("GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE")
    may = state is App.WAITING and idempotent and whole
    assert may_run_http_again(state, method, whole=whole) is may


@pytest.mark.parametrize("state", WEBSOCKET_STATES)
@pytest.mark.parametrize("resumable", [True, False])
def test_a_websocket_that_was_accepted_may_run_again_if_its_app_can_resume(state: App, resumable: bool) -> None:
    assert may_run_websocket_again(state, accepted=True, resumable=resumable) is resumable


@pytest.mark.parametrize("state", WEBSOCKET_STATES)
@pytest.mark.parametrize("resumable", [True, False])
def test_a_websocket_that_was_not_accepted_may_run_again_if_it_was_not_answered(state: App, resumable: bool) -> None:
    may = state is App.HANDSHAKE
    assert may_run_websocket_again(state, accepted=False, resumable=resumable) is may


def test_which_endings_are_deaths() -> None:
    assert {ending for ending in Ending if ending.by_death} == {Ending.KILLED, Ending.ABANDONED}


def event(text: str) -> tuple[int, str]:
    return (MESSAGE_RECEIVED, text)


def test_the_second_death_with_the_same_event_in_hand_is_one_too_many() -> None:
    deaths, poison = Deaths(), event("poison")
    assert KILLS == 2
    assert [deaths.too_many(poison, KILLS, begun=True, suspect=True) for _ in range(3)] == [False, True, True]


def test_a_worker_that_had_not_come_to_the_event_was_not_killed_by_it() -> None:
    deaths, poison = Deaths(), event("poison")
    assert [deaths.too_many(poison, KILLS, begun=begun, suspect=True) for begun in (False, False, False, True)] == [
        *[False] * 3,
        True,
    ]


def test_the_first_death_counts_if_nothing_else_was_in_hand() -> None:
    deaths, poison = Deaths(), event("poison")
    told = [deaths.too_many(poison, KILLS, begun=begun, suspect=False) for begun in (False, True, True)]
    assert told == [False, False, True]


def test_deaths_end_somewhere_though_no_worker_comes_to_the_event() -> None:
    deaths, poison = Deaths(), event("poison")
    told = [deaths.too_many(poison, KILLS, begun=False, suspect=True) for _ in range(START_KILLS)]
    assert told == [False] * (START_KILLS - 1) + [True]


def test_the_same_text_twice_is_not_the_same_event() -> None:
    deaths = Deaths()
    assert [deaths.too_many(event("ab"), KILLS, begun=True, suspect=True) for _ in range(3)] == [False] * 3


def test_another_event_in_hand_begins_the_count_anew() -> None:
    deaths, one, other = Deaths(), event("one"), event("other")
    told = [deaths.too_many(each, KILLS, begun=True, suspect=True) for each in (one, other, one, other, one, one)]
    assert told == [False] * 5 + [True]


def test_each_death_has_its_own_limit() -> None:
    deaths, start, poison = Deaths(), event(""), event("poison")
    told = [deaths.too_many(start, START_KILLS, begun=True, suspect=True) for _ in range(START_KILLS)]
    assert told == [False] * (START_KILLS - 1) + [True]
    assert deaths.too_many(poison, KILLS, begun=True, suspect=True) is False
    assert deaths.too_many(start, START_KILLS, begun=True, suspect=True) is False
