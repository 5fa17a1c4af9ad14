"""Groups over real sockets: a broadcast reaches every member on every interface server."""

import json
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed

import asgibus
from support.deadline import wait_until
from support.members import Member
from support.raw import RawClient
from support.servers import LAYERS, Servers, serving
from support.websocket import handshake, seen

APP = "interface_server.groups_app:app"


@pytest.fixture(scope="module", params=LAYERS)
def servers(request: pytest.FixtureRequest) -> Iterator[Servers]:
    """Provide servers; on Redis two interface servers and two workers."""
    with serving(request, APP, layer=request.param, interfaces=2, workers=2) as servers:
        yield servers


@pytest.fixture
def group() -> str:
    return f"group-{uuid.uuid4().hex}"


@pytest.fixture
def open_members(servers: Servers) -> Iterator[Callable[[int], list[Member]]]:
    """Provide a function that opens `count` members, on the interface servers in turn."""
    with ExitStack() as stack:

        def open_members(count: int) -> list[Member]:
            hosts = servers.interfaces
            return [stack.enter_context(Member(hosts[number % len(hosts)])) for number in range(count)]

        yield open_members


OpenMembers = Callable[[int], list[Member]]


def test_a_broadcast_reaches_every_member_on_every_interface(
    servers: Servers, open_members: OpenMembers, group: str
) -> None:
    members = open_members(24)
    assert len({member.do("who")[0] for member in members}) == len(servers.workers), "a worker has no member"
    for member in members:
        assert member.do("add", group=group) is None
    for number in range(3):
        members[number].socket.send(json.dumps({"do": "say", "group": group, "text": f"{number}-{{}}", "times": 20}))
    for index, member in enumerate(members):
        heard: list[str] = []
        answers = 0
        while len(heard) < 60 or answers < (index < 3):
            message = member.hear()
            if message.startswith("{"):
                answers += 1
            else:
                heard.append(message)
        for number in range(3):  # each sender's in order, senders as they come
            assert [text for text in heard if text[0] == str(number)] == [f"{number}-{count}" for count in range(20)]
        assert member.silent()


def test_after_group_add_returned_every_broadcast_arrives(open_members: OpenMembers, group: str) -> None:
    first, second, *others = open_members(4)
    for number in range(40):
        name = f"{group}-{number}"
        listener, speaker = (first, second) if number % 2 else (second, first)
        listener.do("add", group=name)
        assert speaker.do("say", group=name, text=f"hello {number}") is None
        assert listener.hear() == f"hello {number}"
    assert all(member.silent() for member in others)


def test_joining_is_answered_per_group(open_members: OpenMembers, group: str) -> None:
    """An answer for a group that was joined before does not complete the join of another group."""
    first, second = open_members(2)
    for number in range(40):
        old, new = f"{group}-old-{number}", f"{group}-new-{number}"
        for member in (first, second):
            member.do("add", group=old)
        first.socket.send(json.dumps({"do": "add_beside", "new": new, "joined": old}))
        assert {first.hear(), first.hear()} == {"heard", '{"answer": null}'}


def test_after_group_discard_returned_no_broadcast_arrives(open_members: OpenMembers, group: str) -> None:
    leaver, stayer, speaker = open_members(3)
    for member in (leaver, stayer):
        member.do("add", group=group)
    leaver.do("discard", group=group)
    leaver.do("discard", group=group)  # twice harms nothing
    speaker.do("say", group=group, text="still here?")
    assert stayer.hear() == "still here?"
    assert leaver.silent()
    leaver.do("add", group=group)
    speaker.do("say", group=group, text="back")
    assert (leaver.hear(), stayer.hear()) == ("back", "back")


def test_a_member_of_many_groups_and_a_twofold_member_hear_each_broadcast_once(
    open_members: OpenMembers, group: str
) -> None:
    member, speaker = open_members(2)
    for name in (group, group, f"{group}.other"):
        member.do("add", group=name)
    speaker.do("say", group=group, text="one")
    speaker.do("say", group=f"{group}.other", text="two")
    speaker.do("say", group=f"{group}.nobody", text="three")
    assert sorted([member.hear(), member.hear()]) == ["one", "two"]
    assert member.silent()


def test_when_a_member_leaves_the_others_stay(open_members: OpenMembers, servers: Servers, group: str) -> None:
    stayer, speaker = open_members(2)
    stayer.do("add", group=group)
    for host in servers.interfaces:
        with Member(host) as leaver:
            leaver.do("add", group=group)
    speaker.do("say", group=group, text="hello")
    assert stayer.hear() == "hello"


def test_close_by_broadcast_ends_every_member(open_members: OpenMembers, servers: Servers, group: str) -> None:
    name = uuid.uuid4().hex
    speaker, outsider = open_members(2)
    with ExitStack() as stack:
        members = [stack.enter_context(Member(host, name=name)) for host in servers.interfaces]
        for member in members:
            member.do("add", group=group)
        speaker.do("send_event", group=group, event={"type": "websocket.close", "code": 4123, "reason": "all out"})
        for member in members:
            with pytest.raises(ConnectionClosed) as closed:
                member.hear()
            assert closed.value.rcvd is not None
            assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4123, "all out")
    noted = "notes of a worker that had a member"
    wait_until(
        lambda: any(["disconnect", 4123, "all out"] in seen(host, name) for host in servers.interfaces), 5, noted
    )
    assert speaker.silent()
    assert outsider.silent()


def test_events_that_are_none_or_out_of_place_are_dropped_and_harm_nothing(
    open_members: OpenMembers, group: str
) -> None:
    member, speaker = open_members(2)
    member.do("add", group=group)
    for event in (
        {"type": "websocket.nothing"},
        {"type": "websocket.send"},
        {"type": "websocket.send", "text": 1},
        {"type": "websocket.close", "code": 1},
        {"type": "websocket.accept"},
        {"type": "http.response.body", "body": "a", "more_body": True},
        {"type": "websocket.send", "text": "fit"},
    ):
        assert speaker.do("send_event", group=group, event=event) is None
    assert member.hear() == "fit"
    assert member.silent()


def test_a_name_that_is_none_is_a_type_error(open_members: OpenMembers) -> None:
    (member,) = open_members(1)
    for what in ("add", "discard"):
        assert member.do(what, group="not a name").startswith("TypeError: group names are 1 to 100 ASCII letters")
    assert member.do("say", group="a!b", text="").startswith("TypeError: group names")


def test_event_streams_are_members_too(open_members: OpenMembers, servers: Servers, group: str) -> None:
    name = uuid.uuid4().hex
    (speaker,) = open_members(1)
    with ExitStack() as stack:
        clients = [stack.enter_context(RawClient(host)) for host in servers.interfaces for _ in range(2)]
        for client in clients:
            client.send(f"GET /stream?group={group}&name={name} HTTP/1.1\r\nHost: test\r\n\r\n".encode())
            assert client.read_head()[1] == 200
            assert client.read_chunk() == b"data: joined\n\n"
        for number in range(10):
            event = {"type": "http.response.body", "body": f"data: {number}\n\n", "more_body": True}
            assert speaker.do("send_event", group=group, event=event) is None
        assert speaker.do("say", group=group, text="not for streams") is None
        for client in clients:
            assert [client.read_chunk() for _ in range(10)] == [b"data: %d\n\n" % number for number in range(10)]

        # One of them leaves, and the last event ends the others.
        clients[0].close()
        wait_until(lambda: any(seen(host, name) for host in servers.interfaces), what="the disconnect of the one")
        speaker.do("send_event", group=group, event={"type": "http.response.body", "body": "bye"})
        for client in clients[1:]:
            assert client.read_chunk() == b"bye"
            assert client.read_chunk() == b""


def test_an_http_1_0_stream_gets_the_bare_bytes(open_members: OpenMembers, servers: Servers, group: str) -> None:
    (speaker,) = open_members(1)
    with RawClient(servers.interfaces[0]) as client:
        client.send(f"GET /stream?group={group} HTTP/1.0\r\n\r\n".encode())
        client.read_until(b"data: joined\n\n")
        for body, more in (("a", True), ("b", False)):
            event = {"type": "http.response.body", "body": body, "more_body": more}
            speaker.do("send_event", group=group, event=event)
        assert client.read_until_close() == b"ab"


# To one connection.


def test_an_event_to_a_reply_channel_reaches_that_client_alone(open_members: OpenMembers) -> None:
    one, other, speaker = open_members(3)
    _, channel = one.do("who")
    speaker.do("tell", channel=channel, event={"type": "websocket.send", "text": "psst"})
    assert one.hear() == "psst"
    assert other.silent()
    speaker.do("tell", channel=channel, event={"type": "websocket.close", "code": 4000})
    with pytest.raises(ConnectionClosed):
        one.hear()
    speaker.do("tell", channel=channel, event={"type": "websocket.send", "text": "too late"})
    assert speaker.silent()


def test_a_handshake_may_be_denied_by_others(open_members: OpenMembers, servers: Servers) -> None:
    name = uuid.uuid4().hex
    (speaker,) = open_members(1)

    def noted() -> list[Any]:
        return [note for host in servers.interfaces for note in seen(host, name)]

    with RawClient(servers.interfaces[0]) as client:
        client.send(handshake(f"/hesitate?name={name}"))
        channel = str(wait_until(noted)[0])
        start = {"type": "websocket.http.response.start", "status": 402}
        speaker.do("tell", channel=channel, event=start)
        speaker.do("tell", channel=channel, event={"type": "websocket.http.response.body", "body": "pay"})
        response = client.read_response()
        assert (response.status, response.text) == (402, "pay")
    wait_until(lambda: ["websocket.disconnect", 1006] in noted(), 2)


def test_state_is_kept_and_bounded(open_members: OpenMembers) -> None:
    (member,) = open_members(1)
    assert member.do("keep", value=[1, "two"]) == {"value": [1, "two"]}
    assert member.do("keep", value="x" * 16384).startswith("MessageTooLarge")
    assert member.do("keep_unfit").startswith("TypeError")
    assert member.do("keep", value="small") == {"value": "small"}


def test_outside_the_bus_there_is_no_connection() -> None:
    with pytest.raises(RuntimeError, match=r"this http scope did not come over asgibus: run the app with asgi-inter"):
        asgibus.connection({"type": "http", "extensions": {}})
    with pytest.raises(RuntimeError, match="this websocket scope"):
        asgibus.connection({"type": "websocket"})
