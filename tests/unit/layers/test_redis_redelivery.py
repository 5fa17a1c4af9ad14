"""Deduplication: a reader accepts each numbered message once."""

import random
import sys

import pytest

from asgibus.layers.frames import MESSAGE_ID
from asgibus.layers.redis.redelivery import KEPT_ENTRIES, REPEAT_SECONDS, SOURCES, Deduplicator

FRAME = (1, "group", {})


def accepts(deduplicator: Deduplicator, source: str, number: int, at: float = 1000.0) -> bool:
    frames, again = deduplicator.check([(MESSAGE_ID, source, number), FRAME], at)
    assert frames == [FRAME]
    return not again


def test_each_number_of_a_source_is_accepted_once_in_any_order() -> None:
    deduplicator, dice = Deduplicator(), random.Random(1)
    numbers = list(range(1, KEPT_ENTRIES)) * 2
    dice.shuffle(numbers)
    assert [number for number in numbers if accepts(deduplicator, "a", number)] == list(dict.fromkeys(numbers))
    assert accepts(deduplicator, "b", 1)


def test_the_latest_numbers_of_a_source_are_remembered() -> None:
    deduplicator = Deduplicator()
    last = 10 * KEPT_ENTRIES
    assert all(accepts(deduplicator, "a", number) for number in range(1, last + 1))
    assert not any(accepts(deduplicator, "a", number) for number in range(last - KEPT_ENTRIES + 1, last + 1))


def test_old_sources_are_forgotten() -> None:
    deduplicator = Deduplicator()
    for number in range(200):
        accepts(deduplicator, f"old {number}", 1, at=1000.0)
    accepts(deduplicator, "new", 1, at=1000.0 + REPEAT_SECONDS)
    assert len(deduplicator) == 201
    accepts(deduplicator, "new", 2, at=1000.1 + REPEAT_SECONDS)
    assert len(deduplicator) == 1
    deduplicator.forget_before(1000.0 + 2 * REPEAT_SECONDS)
    assert len(deduplicator) == 1
    deduplicator.forget_before(1001.0 + 2 * REPEAT_SECONDS)
    assert len(deduplicator) == 0


def test_a_source_costs_a_few_kilobytes() -> None:
    deduplicator = Deduplicator()
    for source in range(SOURCES + 10):
        accepts(deduplicator, str(source), 1)
    assert len(deduplicator) == SOURCES
    for number in range(1, 5 * KEPT_ENTRIES):
        accepts(deduplicator, "busy", number)
    busy = deduplicator._sources["busy"]
    assert sys.getsizeof(busy.numbers) < 20_000


@pytest.mark.parametrize("number", [0, -1, 2**64, "1", None, 1.5])
def test_invalid_numbers_are_rejected(number: object) -> None:
    with pytest.raises(ValueError, match="not a number"):
        Deduplicator().check([(MESSAGE_ID, "a", number), FRAME], 1000.0)
