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
from support.websocket import handshake, read_notes

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
    assert len({member.do("identify")[0] for member in members}) == len(servers.workers), "a worker has no member"
    for member in members:
        assert member.do("add", group=group) is None
    for number in range(3):
        members[number].socket.send(
            json.dumps({"do": "broadcast", "group": group, "text": f"{number}-{{}}", "times": 20})
        )
    for index, member in enumerate(members):
        broadcasts: list[str] = []
        answers = 0
        while len(broadcasts) < 60 or answers < (index < 3):
            message = member.receive()
            if message.startswith("{"):
                answers += 1
            else:
                broadcasts.append(message)
        for number in range(3):  # each sender's in order, senders as they come
            assert [text for text in broadcasts if text[0] == str(number)] == [
                f"{number}-{count}" for count in range(20)
            ]
        assert member.is_silent()


def test_after_group_add_returned_every_broadcast_arrives(open_members: OpenMembers, group: str) -> None:
    first, second, *others = open_members(4)
    for number in range(40):
        name = f"{group}-{number}"
        listener, speaker = (first, second) if number % 2 else (second, first)
        listener.do("add", group=name)
        assert speaker.do("broadcast", group=name, text=f"hello {number}") is None
        assert listener.receive() == f"hello {number}"
    assert all(member.is_silent() for member in others)


def test_joining_is_answered_per_group(open_members: OpenMembers, group: str) -> None:
    """An answer for a group that was joined before does not complete the join of another group."""
    first, second = open_members(2)
    for number in range(40):
        old, new = f"{group}-old-{number}", f"{group}-new-{number}"
        for member in (first, second):
            member.do("add", group=old)
        first.socket.send(json.dumps({"do": "add_beside", "new": new, "joined": old}))
        assert {first.receive(), first.receive()} == {"joined", '{"answer": null}'}


def test_after_group_discard_returned_no_broadcast_arrives(open_members: OpenMembers, group: str) -> None:
    leaver, stayer, speaker = open_members(3)
    for member in (leaver, stayer):
        member.do("add", group=group)
    leaver.do("discard", group=group)
    leaver.do("discard", group=group)  # twice harms nothing
    speaker.do("broadcast", group=group, text="still here?")
    assert stayer.receive() == "still here?"
    assert leaver.is_silent()
    leaver.do("add", group=group)
    speaker.do("broadcast", group=group, text="back")
    assert (leaver.receive(), stayer.receive()) == ("back", "back")


def test_each_broadcast_is_received_once_per_member(open_members: OpenMembers, group: str) -> None:
    member, speaker = open_members(2)
    for name in (group, group, f"{group}.other"):
        member.do("add", group=name)
    speaker.do("broadcast", group=group, text="one")
    speaker.do("broadcast", group=f"{group}.other", text="two")
    speaker.do("broadcast", group=f"{group}.nobody", text="three")
    assert sorted([member.receive(), member.receive()]) == ["one", "two"]
    assert member.is_silent()


def test_a_disconnect_keeps_the_other_members(open_members: OpenMembers, servers: Servers, group: str) -> None:
    stayer, speaker = open_members(2)
    stayer.do("add", group=group)
    for host in servers.interfaces:
        with Member(host) as leaver:
            leaver.do("add", group=group)
    speaker.do("broadcast", group=group, text="hello")
    assert stayer.receive() == "hello"


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
                member.receive()
            assert closed.value.rcvd is not None
            assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4123, "all out")
    expected = "notes of a worker that had a member"
    wait_until(
        lambda: any(["disconnect", 4123, "all out"] in read_notes(host, name) for host in servers.interfaces),
        5,
        expected,
    )
    assert speaker.is_silent()
    assert outsider.is_silent()


def test_invalid_events_are_dropped(open_members: OpenMembers, group: str) -> None:
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
    assert member.receive() == "fit"
    assert member.is_silent()


def test_an_invalid_group_name_is_a_type_error(open_members: OpenMembers) -> None:
    (member,) = open_members(1)
    for action in ("add", "discard"):
        assert member.do(action, group="not a name").startswith("TypeError: group names are 1 to 100 ASCII letters")
    assert member.do("broadcast", group="a!b", text="").startswith("TypeError: group names")


def test_event_streams_receive_broadcasts(open_members: OpenMembers, servers: Servers, group: str) -> None:
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
        assert speaker.do("broadcast", group=group, text="not for streams") is None
        for client in clients:
            assert [client.read_chunk() for _ in range(10)] == [b"data: %d\n\n" % number for number in range(10)]

        # One client leaves, and the last event ends the others.
        clients[0].close()
        wait_until(
            lambda: any(read_notes(host, name) for host in servers.interfaces),
            what="the disconnect of the first client",
        )
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


# Events to one connection.


def test_an_event_to_a_reply_channel_reaches_one_client(open_members: OpenMembers) -> None:
    receiver, other, speaker = open_members(3)
    _, channel = receiver.do("identify")
    speaker.do("send_to", channel=channel, event={"type": "websocket.send", "text": "psst"})
    assert receiver.receive() == "psst"
    assert other.is_silent()
    speaker.do("send_to", channel=channel, event={"type": "websocket.close", "code": 4000})
    with pytest.raises(ConnectionClosed):
        receiver.receive()
    speaker.do("send_to", channel=channel, event={"type": "websocket.send", "text": "too late"})
    assert speaker.is_silent()


def test_a_handshake_is_denied_by_events_to_its_reply_channel(open_members: OpenMembers, servers: Servers) -> None:
    name = uuid.uuid4().hex
    (speaker,) = open_members(1)

    def read_all_notes() -> list[Any]:
        return [note for host in servers.interfaces for note in read_notes(host, name)]

    with RawClient(servers.interfaces[0]) as client:
        client.send(handshake(f"/hesitate?name={name}"))
        channel = str(wait_until(read_all_notes)[0])
        start = {"type": "websocket.http.response.start", "status": 402}
        speaker.do("send_to", channel=channel, event=start)
        speaker.do("send_to", channel=channel, event={"type": "websocket.http.response.body", "body": "pay"})
        response = client.read_response()
        assert (response.status, response.text) == (402, "pay")
    wait_until(lambda: ["websocket.disconnect", 1006] in read_all_notes(), 2)


def test_state_is_kept_and_bounded(open_members: OpenMembers) -> None:
    (member,) = open_members(1)
    assert member.do("keep", value=[1, "two"]) == {"value": [1, "two"]}
    assert member.do("keep", value="x" * 16384).startswith("MessageTooLarge")
    assert member.do("keep_unfit").startswith("TypeError")
    assert member.do("keep", value="small") == {"value": "small"}


def test_connection_raises_for_a_scope_of_another_server() -> None:
    with pytest.raises(RuntimeError, match=r"this http scope did not come over asgibus: run the app with asgi-inter"):
        asgibus.connection({"type": "http", "extensions": {}})
    with pytest.raises(RuntimeError, match="this websocket scope"):
        asgibus.connection({"type": "websocket"})
