"""The table of leases, without a store: each event in each state, and the reported deaths."""

import pytest

from asgibus.layers.leases import TABLE, Beat, IllegalPeerEvent, PeerEvent, PeerState, PeerTable

OWN = "own.1!"
OTHER = "other.2!"

# Events that lead a process into each state of `PeerTable`.
WAYS = {
    PeerState.UNKNOWN: [],
    PeerState.WATCHED: [PeerEvent.WATCH],
    PeerState.ALIVE: [PeerEvent.LEASE],
    PeerState.DEAD: [PeerEvent.ENDED],
}
AFTER = {
    PeerState.UNKNOWN: {
        PeerEvent.WATCH: PeerState.WATCHED,
        PeerEvent.LEASE: PeerState.ALIVE,
        PeerEvent.ENDED: PeerState.DEAD,
        PeerEvent.ABSENT: PeerState.UNKNOWN,
        PeerEvent.DECLARED: PeerState.DEAD,
        PeerEvent.RESET: PeerState.UNKNOWN,
    },
    PeerState.WATCHED: {
        PeerEvent.WATCH: PeerState.WATCHED,
        PeerEvent.LEASE: PeerState.ALIVE,
        PeerEvent.ENDED: PeerState.DEAD,
        PeerEvent.ABSENT: PeerState.DEAD,
        PeerEvent.DECLARED: PeerState.DEAD,
        PeerEvent.RESET: PeerState.WATCHED,
    },
    PeerState.ALIVE: {
        PeerEvent.WATCH: PeerState.ALIVE,
        PeerEvent.LEASE: PeerState.ALIVE,
        PeerEvent.ENDED: PeerState.DEAD,
        PeerEvent.ABSENT: PeerState.DEAD,
        PeerEvent.DECLARED: PeerState.DEAD,
        PeerEvent.RESET: PeerState.WATCHED,
    },
    PeerState.DEAD: {
        PeerEvent.WATCH: PeerState.WATCHED,
        PeerEvent.LEASE: PeerState.ALIVE,
        PeerEvent.ENDED: PeerState.DEAD,
        PeerEvent.ABSENT: PeerState.UNKNOWN,
        PeerEvent.DECLARED: PeerState.DEAD,
        PeerEvent.RESET: PeerState.WATCHED,
    },
}


def beat(*, live: tuple[str, ...] = (), ended: tuple[str, ...] = (), grace: bool = False) -> Beat:
    return Beat(frozenset(live), frozenset(ended), grace)


def apply(leases: PeerTable, event: PeerEvent, mailbox: str = OTHER) -> bool:
    """Apply an event of a process; return whether a death was reported."""
    if event is PeerEvent.WATCH:
        leases.watch(mailbox)
    elif event is PeerEvent.LEASE:
        return bool(leases.apply(beat(live=(OWN, mailbox))))
    elif event is PeerEvent.ENDED:
        return leases.apply(beat(live=(OWN,), ended=(mailbox,))) == [mailbox]
    elif event is PeerEvent.ABSENT:
        return leases.apply(beat(live=(OWN,))) == [mailbox]
    elif event is PeerEvent.DECLARED:
        return leases.declare_dead(mailbox)
    else:
        leases.reset()
    return False


@pytest.mark.parametrize("event", PeerEvent, ids=lambda event: event.name)
@pytest.mark.parametrize("life", PeerState, ids=lambda life: life.name)
def test_each_event_in_each_state(life: PeerState, event: PeerEvent) -> None:
    leases = PeerTable(OWN)
    for earlier in WAYS[life]:
        apply(leases, earlier)
    assert leases.state(OTHER) is life
    reported = apply(leases, event)
    after = AFTER[life][event]
    assert leases.state(OTHER) is after
    assert reported is (after is PeerState.DEAD and life is not PeerState.DEAD)


@pytest.mark.parametrize("event", PeerEvent, ids=lambda event: event.name)
def test_a_process_does_not_declare_itself_dead(event: PeerEvent) -> None:
    leases = PeerTable(OWN)
    assert not apply(leases, event, OWN)
    assert leases.state(OWN) is PeerState.UNKNOWN


def test_only_unknown_processes_have_illegal_events() -> None:
    illegal = {(life, event) for life in PeerState for event in PeerEvent} - TABLE.keys()
    assert illegal == {(PeerState.UNKNOWN, PeerEvent.ABSENT), (PeerState.UNKNOWN, PeerEvent.RESET)}
    assert str(IllegalPeerEvent(PeerState.UNKNOWN, PeerEvent.ABSENT)) == (
        "a process that is unknown: it has no lease, and had time to take one"
    )


def test_a_death_is_reported_once() -> None:
    leases = PeerTable(OWN)
    leases.apply(beat(live=(OWN, OTHER)))
    assert leases.apply(beat(live=(OWN,), ended=(OTHER,))) == [OTHER]
    for _ in range(3):
        assert leases.apply(beat(live=(OWN,), ended=(OTHER,))) == []
        assert not leases.declare_dead(OTHER)
    assert leases.apply(beat(live=(OWN,))) == []  # not listed any more
    assert leases.state(OTHER) is PeerState.UNKNOWN


@pytest.mark.parametrize("again", [PeerEvent.WATCH, PeerEvent.RESET, PeerEvent.LEASE], ids=lambda event: event.name)
@pytest.mark.parametrize("death", [PeerEvent.ENDED, PeerEvent.ABSENT, PeerEvent.DECLARED], ids=lambda event: event.name)
def test_a_death_is_reported_again_after_other_events(again: PeerEvent, death: PeerEvent) -> None:
    leases = PeerTable(OWN)
    apply(leases, PeerEvent.LEASE)
    assert apply(leases, PeerEvent.ENDED)
    assert not apply(leases, again)
    assert apply(leases, death)


def test_no_absent_process_is_declared_dead_within_grace() -> None:
    leases = PeerTable(OWN)
    leases.apply(beat(live=(OWN, "alive!", "ended!")))
    leases.watch("watched!")
    assert leases.apply(beat(live=(OWN,), ended=("ended!",), grace=True)) == ["ended!"]
    assert leases.state("alive!") is PeerState.ALIVE
    assert leases.state("watched!") is PeerState.WATCHED
    assert sorted(leases.apply(beat(live=(OWN,), ended=("ended!",)))) == ["alive!", "watched!"]


def test_a_watched_process_with_a_lease_is_alive() -> None:
    leases = PeerTable(OWN)
    leases.apply(beat(live=(OWN, OTHER)))
    leases.reset()
    leases.apply(beat(live=(OWN,), grace=True))
    assert leases.apply(beat(live=(OWN, OTHER), grace=True)) == []
    assert leases.apply(beat(live=(OWN, OTHER))) == []
    assert leases.state(OTHER) is PeerState.ALIVE


def test_a_batch_from_a_live_process_changes_nothing() -> None:
    leases = PeerTable(OWN)
    leases.apply(beat(live=(OWN, OTHER)))
    leases.watch(OTHER)
    assert leases.state(OTHER) is PeerState.ALIVE


def test_a_reply_from_before_a_declaration_is_no_return() -> None:
    leases = PeerTable(OWN)
    leases.apply(beat(live=(OTHER,)))
    reply = beat(live=(OTHER, OWN))  # on its way
    assert leases.declare_dead(OTHER)
    assert leases.apply(reply.after({OTHER})) == []
    assert leases.apply(beat(live=(OWN,), ended=(OTHER,))) == [], "it was reported"
    assert reply.after({"third.3!"}) is reply
