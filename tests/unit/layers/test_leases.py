"""The table of leases, without a store: each sign in each state, and what is reported."""

import pytest

from asgibus.layers.leases import TABLE, Beat, IllegalSign, Leases, Life, Sign

OWN = "own.1!"
OTHER = "other.2!"

# How a process comes into each state, as seen by `Leases`.
WAYS = {
    Life.UNKNOWN: [],
    Life.WATCHED: [Sign.WATCH],
    Life.ALIVE: [Sign.LEASE],
    Life.DEAD: [Sign.ENDED],
}
AFTER = {
    Life.UNKNOWN: {
        Sign.WATCH: Life.WATCHED,
        Sign.LEASE: Life.ALIVE,
        Sign.ENDED: Life.DEAD,
        Sign.ABSENT: Life.UNKNOWN,
        Sign.TOLD: Life.DEAD,
        Sign.FORGET: Life.UNKNOWN,
    },
    Life.WATCHED: {
        Sign.WATCH: Life.WATCHED,
        Sign.LEASE: Life.ALIVE,
        Sign.ENDED: Life.DEAD,
        Sign.ABSENT: Life.DEAD,
        Sign.TOLD: Life.DEAD,
        Sign.FORGET: Life.WATCHED,
    },
    Life.ALIVE: {
        Sign.WATCH: Life.ALIVE,
        Sign.LEASE: Life.ALIVE,
        Sign.ENDED: Life.DEAD,
        Sign.ABSENT: Life.DEAD,
        Sign.TOLD: Life.DEAD,
        Sign.FORGET: Life.WATCHED,
    },
    Life.DEAD: {
        Sign.WATCH: Life.WATCHED,
        Sign.LEASE: Life.ALIVE,
        Sign.ENDED: Life.DEAD,
        Sign.ABSENT: Life.UNKNOWN,
        Sign.TOLD: Life.DEAD,
        Sign.FORGET: Life.WATCHED,
    },
}


def beat(*, live: tuple[str, ...] = (), ended: tuple[str, ...] = (), grace: bool = False) -> Beat:
    return Beat(frozenset(live), frozenset(ended), grace)


def give(leases: Leases, sign: Sign, mailbox: str = OTHER) -> bool:
    """Give it a sign of that process; whether a death was reported."""
    if sign is Sign.WATCH:
        leases.watch(mailbox)
    elif sign is Sign.LEASE:
        return bool(leases.beat(beat(live=(OWN, mailbox))))
    elif sign is Sign.ENDED:
        return leases.beat(beat(live=(OWN,), ended=(mailbox,))) == [mailbox]
    elif sign is Sign.ABSENT:
        return leases.beat(beat(live=(OWN,))) == [mailbox]
    elif sign is Sign.TOLD:
        return leases.told(mailbox)
    else:
        leases.forget()
    return False


@pytest.mark.parametrize("sign", Sign, ids=lambda sign: sign.name)
@pytest.mark.parametrize("life", Life, ids=lambda life: life.name)
def test_each_sign_in_each_state(life: Life, sign: Sign) -> None:
    leases = Leases(OWN)
    for each in WAYS[life]:
        give(leases, each)
    assert leases.life(OTHER) is life
    reported = give(leases, sign)
    after = AFTER[life][sign]
    assert leases.life(OTHER) is after
    assert reported is (after is Life.DEAD and life is not Life.DEAD)


@pytest.mark.parametrize("sign", Sign, ids=lambda sign: sign.name)
def test_the_own_process_is_not_judged(sign: Sign) -> None:
    leases = Leases(OWN)
    assert not give(leases, sign, OWN)
    assert leases.life(OWN) is Life.UNKNOWN


def test_only_who_is_unknown_can_be_neither_absent_nor_forgotten() -> None:
    illegal = {(life, sign) for life in Life for sign in Sign} - TABLE.keys()
    assert illegal == {(Life.UNKNOWN, Sign.ABSENT), (Life.UNKNOWN, Sign.FORGET)}
    assert str(IllegalSign(Life.UNKNOWN, Sign.ABSENT)) == (
        "a process that is unknown: it has no lease, and had time to take one"
    )


def test_a_death_is_reported_once() -> None:
    leases = Leases(OWN)
    leases.beat(beat(live=(OWN, OTHER)))
    assert leases.beat(beat(live=(OWN,), ended=(OTHER,))) == [OTHER]
    for _ in range(3):
        assert leases.beat(beat(live=(OWN,), ended=(OTHER,))) == []
        assert not leases.told(OTHER)
    assert leases.beat(beat(live=(OWN,))) == []  # not listed any more
    assert leases.life(OTHER) is Life.UNKNOWN


@pytest.mark.parametrize("again", [Sign.WATCH, Sign.FORGET, Sign.LEASE], ids=lambda sign: sign.name)
@pytest.mark.parametrize("death", [Sign.ENDED, Sign.ABSENT, Sign.TOLD], ids=lambda sign: sign.name)
def test_a_death_is_reported_again_after_there_was_news(again: Sign, death: Sign) -> None:
    leases = Leases(OWN)
    give(leases, Sign.LEASE)
    assert give(leases, Sign.ENDED)
    assert not give(leases, again)
    assert give(leases, death)


def test_nobody_is_judged_for_being_absent_within_grace() -> None:
    leases = Leases(OWN)
    leases.beat(beat(live=(OWN, "alive!", "ended!")))
    leases.watch("watched!")
    assert leases.beat(beat(live=(OWN,), ended=("ended!",), grace=True)) == ["ended!"]
    assert leases.life("alive!") is Life.ALIVE
    assert leases.life("watched!") is Life.WATCHED
    assert sorted(leases.beat(beat(live=(OWN,), ended=("ended!",)))) == ["alive!", "watched!"]


def test_who_is_watched_and_takes_his_lease_lives() -> None:
    leases = Leases(OWN)
    leases.beat(beat(live=(OWN, OTHER)))
    leases.forget()
    leases.beat(beat(live=(OWN,), grace=True))
    assert leases.beat(beat(live=(OWN, OTHER), grace=True)) == []
    assert leases.beat(beat(live=(OWN, OTHER))) == []
    assert leases.life(OTHER) is Life.ALIVE


def test_a_batch_from_who_lives_changes_nothing() -> None:
    leases = Leases(OWN)
    leases.beat(beat(live=(OWN, OTHER)))
    leases.watch(OTHER)
    assert leases.life(OTHER) is Life.ALIVE
