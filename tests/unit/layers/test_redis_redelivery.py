"""A reader remembers numbered messages for long enough to take each once."""

import random
import sys

import pytest

from asgibus.layers.frames import MESSAGE_ID
from asgibus.layers.redis.redelivery import KEPT_ENTRIES, REPEAT_SECONDS, SOURCES, Deduplicator

FRAME = (1, "group", {})


def took(taken: Deduplicator, source: str, number: int, at: float = 1000.0) -> bool:
    frames, again = taken.check([(MESSAGE_ID, source, number), FRAME], at)
    assert frames == [FRAME]
    return not again


def test_each_number_of_a_source_is_taken_once_in_whatever_order() -> None:
    taken, dice = Deduplicator(), random.Random(1)
    numbers = list(range(1, KEPT_ENTRIES)) * 2
    dice.shuffle(numbers)
    assert [number for number in numbers if took(taken, "a", number)] == list(dict.fromkeys(numbers))
    assert took(taken, "b", 1)


def test_the_last_thousand_are_known_of_a_source_that_goes_on() -> None:
    taken = Deduplicator()
    last = 10 * KEPT_ENTRIES
    assert all(took(taken, "a", number) for number in range(1, last + 1))
    assert not any(took(taken, "a", number) for number in range(last - KEPT_ENTRIES + 1, last + 1))


def test_sources_that_can_send_nothing_again_are_forgotten() -> None:
    taken = Deduplicator()
    for number in range(200):
        took(taken, f"old {number}", 1, at=1000.0)
    took(taken, "new", 1, at=1000.0 + REPEAT_SECONDS)
    assert len(taken) == 201
    took(taken, "new", 2, at=1000.1 + REPEAT_SECONDS)
    assert len(taken) == 1
    taken.forget_before(1000.0 + 2 * REPEAT_SECONDS)
    assert len(taken) == 1
    taken.forget_before(1001.0 + 2 * REPEAT_SECONDS)
    assert len(taken) == 0


def test_a_source_costs_a_few_kilobytes() -> None:
    taken = Deduplicator()
    for source in range(SOURCES + 10):
        took(taken, str(source), 1)
    assert len(taken) == SOURCES
    for number in range(1, 5 * KEPT_ENTRIES):
        took(taken, "busy", number)
    busy = taken._sources["busy"]
    assert sys.getsizeof(busy.numbers) < 20_000


@pytest.mark.parametrize("number", [0, -1, 2**64, "1", None, 1.5])
def test_what_is_no_number_is_refused(number: object) -> None:
    with pytest.raises(ValueError, match="not a number"):
        Deduplicator().check([(MESSAGE_ID, "a", number), FRAME], 1000.0)
