"""Retries: connections that are offered again after the end of their run, and the limit of attempts."""

import itertools

import pytest

from asgibus.protocol.retry import RunEnd, may_run_http_again, may_run_websocket_again, retry_delay
from asgibus.protocol.states import AppState

HTTP_STATES = [AppState.WAITING, AppState.STARTED, AppState.STARTED_TRAILERS, AppState.TRAILERS, AppState.COMPLETE]
WEBSOCKET_STATES = [AppState.HANDSHAKE, AppState.OPEN, AppState.DENYING, AppState.COMPLETE]
METHODS = ["GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE", "POST", "PATCH", "CONNECT", "get", "PROPFIND", ""]


@pytest.mark.parametrize(("state", "method", "whole"), [*itertools.product(HTTP_STATES, METHODS, [True, False])])
def test_requests_run_again_if_idempotent_and_unanswered(state: AppState, method: str, whole: bool) -> None:
    idempotent = method in ("GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE")
    may = state is AppState.WAITING and idempotent and whole
    assert may_run_http_again(state, method, whole=whole) is may


@pytest.mark.parametrize("state", WEBSOCKET_STATES)
@pytest.mark.parametrize("resumable", [True, False])
def test_accepted_websockets_run_again_if_resumable(state: AppState, resumable: bool) -> None:
    assert may_run_websocket_again(state, accepted=True, resumable=resumable) is resumable


@pytest.mark.parametrize("state", WEBSOCKET_STATES)
@pytest.mark.parametrize("resumable", [True, False])
def test_unaccepted_websockets_run_again_if_unanswered(state: AppState, resumable: bool) -> None:
    may = state is AppState.HANDSHAKE
    assert may_run_websocket_again(state, accepted=False, resumable=resumable) is may


def test_crashes_among_the_ends_of_runs() -> None:
    assert {ending for ending in RunEnd if ending.by_death} == {RunEnd.KILLED, RunEnd.ABANDONED}


def test_the_delay_grows_from_the_second_crash_on() -> None:
    assert retry_delay(0, 1.0) == retry_delay(1, 1.0) == 0.0
    assert [retry_delay(crashes, 0.0) for crashes in (2, 3, 4)] == [0.5, 1.0, 2.0]
    assert [retry_delay(crashes, 1.0) for crashes in (2, 3, 4)] == [1.0, 2.0, 4.0]
