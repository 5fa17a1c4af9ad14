"""The parts of streams without IO: offsets, batches, broadcasts and limits."""

import re
from typing import Any

import pytest

from asgibus.layers.codec import unpack_items
from asgibus.layers.errors import EntryTooLarge, MessageTooLarge
from asgibus.layers.settings import LayerSettings, StreamLimits
from asgibus.layers.streams import BEGINNING, Broadcast, Offset, StreamState, parse_broadcast, parse_offset
from asgibus.layers.streams.batches import BATCH_BYTES, BATCH_SECONDS, EARLY_SECONDS, ENTRY_BYTES, MOST_BYTES, Batcher
from asgibus.layers.streams.offsets import client_offset


@pytest.mark.parametrize("text", ["1764541234567-1", "1-0", "999999999999999-999999999999999"])
def test_an_offset_is_a_text_and_back(text: str) -> None:
    assert str(parse_offset(text)) == text
    assert parse_offset(parse_offset(text)) == parse_offset(text)


@pytest.mark.parametrize("text", [None, "0"])
def test_the_beginning_has_its_own_texts(text: str | None) -> None:
    assert parse_offset(text) == BEGINNING
    assert str(BEGINNING) == "0"


def test_offsets_are_ordered_by_epoch_and_number() -> None:
    assert BEGINNING < Offset(9, 10) < Offset(9, 11) < Offset(10, 1)


@pytest.mark.parametrize(
    "text", ["", "-", "1", "1-", "-1", "0-1", "01-1", "1-01", "1-1\n", "1-1-1", "٣-1", 7, b"1-1", "1" * 16 + "-1"]
)
def test_another_text_is_refused_with_the_form(text: Any) -> None:
    with pytest.raises(ValueError, match='the offset of a stream is "0" or a text such as'):
        parse_offset(text)


def test_clients_may_name_any_text_and_apps_may_not() -> None:
    assert client_offset("1764541234567-42") == Offset(1764541234567, 42)
    assert client_offset(None) == client_offset("") == client_offset("0") == BEGINNING
    assert {client_offset(each) for each in ("x", "0-0", "1-2-3", "\u0661-\u0661", "1" * 99, "-1")} == {Offset(1, 0)}
    with pytest.raises(ValueError, match="not 42"):
        client_offset(42)


def test_the_first_entry_of_a_slow_writer_is_due_at_once() -> None:
    batcher = Batcher(7)
    assert batcher.due_in(100.0) is None
    assert batcher.add("a") == 8
    assert batcher.due_in(100.0) == 0
    batch = batcher.take(100.0)
    assert (batch.first, batch.last, unpack_items(batch.packed)) == (8, 8, ["a"])
    assert batcher.due_in(100.0) is None


def test_entries_of_a_moment_are_one_batch() -> None:
    batcher = Batcher(0)
    batcher.add(0)
    batcher.take(100.0)
    items: list[Any] = [{"text": str(number), "bytes": b"x"} for number in range(1, 40)]
    numbers = [batcher.add(item) for item in items]
    assert numbers == list(range(2, 41))
    due_in = BATCH_SECONDS - EARLY_SECONDS
    assert batcher.due_in(100.005) == pytest.approx(due_in - 0.005)
    assert batcher.due_in(100.0 + due_in) == 0
    batch = batcher.take(100.0 + BATCH_SECONDS)
    assert (batch.first, batch.last, unpack_items(batch.packed)) == (2, 40, items)
    assert len(batcher) == batcher.size == 0


def test_a_fast_writer_has_a_batch_every_20_milliseconds() -> None:
    batcher = Batcher(0)
    taken: list[float] = []
    for millisecond in range(1000):
        batcher.add("x")
        if batcher.due_in(now := 100 + millisecond / 1000) == 0:
            batcher.take(now)
            taken.append(now)
    assert len(taken) == pytest.approx(1 / BATCH_SECONDS, abs=2)


def test_fifty_entries_a_second_wait_for_nothing_if_some_are_early() -> None:
    batcher = Batcher(0)
    for number in range(200):
        now = 100 + number * BATCH_SECONDS - (EARLY_SECONDS * 0.9 if number % 7 == 3 else 0.0)
        batcher.add("x")
        assert batcher.due_in(now) == 0, number
        batcher.take(now)


def test_a_full_batch_waits_for_nothing() -> None:
    batcher = Batcher(0)
    batcher.add("first")
    batcher.take(100.0)
    while batcher.size < BATCH_BYTES:
        assert batcher.due_in(100.001) != 0
        batcher.add("x" * 100)
    assert batcher.due_in(100.001) == 0


def test_an_entry_behind_full_batches_waits_20_milliseconds_at_most() -> None:
    batcher = Batcher(0)
    for _ in range(100):
        batcher.add("x" * BATCH_BYTES)
        batcher.take(100.0)
    batcher.add("last")
    due_in = batcher.due_in(100.0)
    assert due_in is not None
    assert due_in <= BATCH_SECONDS


def test_a_batch_is_bounded_when_the_store_is_slow() -> None:
    batcher = Batcher(0)
    items = ["x" * 10_000] * 20 + ["y" * (ENTRY_BYTES - 3)] * 2
    for item in items:
        batcher.add(item)
    found: list[Any] = []
    while len(batcher):
        batch = batcher.take(100.0)
        assert batch.first == len(found) + 1
        assert len(batch.packed) <= MOST_BYTES + 5
        found += unpack_items(batch.packed)
    assert found == items


def test_an_entry_has_a_limit() -> None:
    batcher = Batcher(0)
    with pytest.raises(
        EntryTooLarge, match=f"an entry of {2**20 + 5} bytes is over the limit of 65536 bytes"
    ) as raised:
        batcher.add("x" * 2**20)
    assert isinstance(raised.value, MessageTooLarge)
    assert batcher.add("y") == 1


def test_an_item_of_another_type_has_no_number() -> None:
    batcher = Batcher(0)
    with pytest.raises(TypeError):
        batcher.add({1, 2})
    assert batcher.add("y") == 1


def test_a_broadcast_is_a_message_and_back() -> None:
    for broadcast in (
        Broadcast("a", 9, 3, [1, {"b": b"c"}]),
        Broadcast("a", 9, 1, [], StreamState.FAILED, "KeyError"),
        Broadcast("a", 9, 5, [], StreamState.OPEN, left=30.0),
    ):
        assert parse_broadcast(broadcast.message() | {"of a later release": 1}) == broadcast


def test_a_broadcast_continues_what_ends_in_front_of_it() -> None:
    broadcast = Broadcast("a", 9, 3, ["x", "y"])
    assert broadcast.continues(Offset(9, 2))
    assert not any(map(broadcast.continues, (Offset(9, 1), Offset(9, 3), Offset(8, 2), BEGINNING)))
    assert broadcast.next == Offset(9, 4)


@pytest.mark.parametrize(
    "change",
    [
        {"type": "x"},
        {"stream": 1},
        {"epoch": "9"},
        {"epoch": 0},
        {"first": 0},
        {"items": {}},
        {"state": "x"},
        {"state": None},
        {"error": 1},
        {"left": "1"},
    ],
)
def test_other_messages_are_no_broadcasts(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"not a broadcast|valid StreamState"):
        parse_broadcast(Broadcast("a", 9, 3).message() | change)


def test_limits_are_chosen_by_the_name_of_the_stream() -> None:
    settings = LayerSettings.of(
        stream_limits={"answer.*": {"entries": 7}, re.compile("log"): StreamLimits(bytes=9), "answer.x": {"entries": 1}}
    )
    assert settings.limits_of("answer.x") == StreamLimits(entries=7)
    assert settings.limits_of("log.1") == StreamLimits(bytes=9)
    assert settings.limits_of("other") == StreamLimits(5000, 4 * 1024 * 1024, 3600.0)


@pytest.mark.parametrize(
    "limits",
    [{"entries": 0}, {"entries": 1.5}, {"bytes": -1}, {"bytes": True}, {"kept": 0}, {"kept": "1"}, {"size": 1}],
)
def test_a_wrong_limit_is_refused(limits: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="stream"):
        LayerSettings.of(stream_limits={"*": limits})


def test_an_item_that_could_not_be_read_has_no_number() -> None:
    batcher = Batcher(0)
    for shape in ("list", "dict"):
        item: Any = "x"
        for _ in range(1020):
            item = [item] if shape == "list" else {"a": item}
        with pytest.raises(TypeError, match="recursion limit"):
            batcher.add(item)
    deep: Any = "x"
    for _ in range(400):
        deep = [deep]
    assert batcher.add(deep) == 1
    assert unpack_items(batcher.take(100.0).packed) == [deep]
