"""Connections that follow streams: WebSockets, and responses without a run of the app."""

from typing import Any

import pytest

from asgibus.interface_server.connections import followers
from asgibus.layers.codec import pack
from asgibus.layers.errors import LayerUnavailable
from asgibus.layers.frames import EVENT, GROUP_MESSAGE, SUPERSEDED
from asgibus.layers.settings import StreamLimits
from asgibus.layers.streams.page import Broadcast, StreamState
from asgibus.layers.streams.store import Batch, WriterIdentity
from asgibus.protocol.events import (
    ACCEPT,
    DETACH,
    EVENT_STREAM,
    FOLLOW,
    GROUP_DONE,
    HANDOVER,
    HTTP_DISCONNECT,
    MESSAGE_SENT,
    RESPONSE_BODY,
    RESPONSE_START,
    UNFOLLOW,
)
from asgibus.protocol.states import ConnectionState
from support.moving import Moved
from support.recording import OTHER, WORKER, Table, accept
from support.socket_harness import HANDSHAKE, Socket, get

HEAD = (RESPONSE_START, 200, b"content-type: text/event-stream\r\n")
SSE = pack({"kind": "sse"})


class Writer:
    """Writes a stream, as a writer of another process does."""

    def __init__(self, table: Table, name: str = "answer", **limits: Any) -> None:
        self._table = table
        self._name = name
        self._identity = WriterIdentity("writer.1!1", StreamLimits(**limits), lambda: None)
        self._last = 0
        run(table.streams.begin(name, self._identity, restart=True))

    @property
    def epoch(self) -> int:
        return self._identity.epoch

    def store(self, *items: Any) -> Broadcast:
        """Store entries, and return the broadcast, which is not sent."""
        first = self._last + 1
        self._last += len(items)
        run(self._table.streams.append(self._name, self._identity, Batch(first, pack(items), len(items))))
        return Broadcast(self._name, self.epoch, first, items)

    def append(self, *items: Any) -> None:
        self.tell(self.store(*items))

    def end(self, error: str = "") -> None:
        state = StreamState.FAILED if error else StreamState.ENDED
        run(self._table.streams.finish(self._name, self._identity, self._last, state, error))
        self.tell(Broadcast(self._name, self.epoch, self._last + 1, (), state, error))

    def tell(self, broadcast: Broadcast) -> None:
        self._table.frames((GROUP_MESSAGE, f"stream:{self._name}", broadcast.message()), sender="")

    def offset(self, number: int) -> str:
        return f"{self.epoch}-{number}"


def run(call: Any) -> None:
    """Run a coroutine that never waits."""
    with pytest.raises(StopIteration):
        call.send(None)


class Viewer:
    """A WebSocket that follows a stream."""

    def __init__(self, table: Table, after: str = "0", template: Any = None) -> None:
        self.table = table
        self.connection, self.terminator = table.open_accepted()
        self.sent = 1
        self.worker = WORKER
        self.follow(after, template)

    def follow(self, after: str = "0", template: Any = None, stream: str = "answer") -> None:
        if template is None:
            template = {"entry": "{data}", "end": "end", "reset": "reset"}
        self.post(FOLLOW, stream, after, pack(template))

    def post(self, *event: Any) -> None:
        stream = self.connection.stream
        self.table.frames((EVENT, stream.number, stream.attempt, self.sent, 0, *event), sender=self.worker)
        self.sent += 1

    @property
    def got(self) -> list[str]:
        return self.terminator.messages


class Response(Socket):
    """A client whose response follows a stream, without a run of the app."""

    def __init__(
        self, *, method: str = "GET", version: str = "1.1", after: str = "0", head: Any = HEAD, **settings: Any
    ) -> None:
        super().__init__(**settings)
        request = get("/answer").replace(b"GET", method.encode()).replace(b"HTTP/1.1", f"HTTP/{version}".encode())
        self.send(request)
        self.post(*head)
        self.post(RESPONSE_BODY, b":\n\n")
        self.post(DETACH, "answer", after, SSE)

    @property
    def connection(self) -> Any:
        return next(iter(self.connections))

    @property
    def body(self) -> bytes:
        """Return the body that was written, without its chunks."""
        _, _, rest = self.transport.written.partition(b"\r\n\r\n")
        body = b""
        while rest:
            size, _, rest = rest.partition(b"\r\n")
            body, rest = body + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
        return body


@pytest.fixture
def table() -> Table:
    return Table()


# WebSockets.


def test_a_websocket_gets_what_is_kept_and_what_comes(table: Table) -> None:
    writer = Writer(table)
    writer.append("a", {"b": 1})
    viewer = Viewer(table, template={})
    writer.append("c")
    writer.end("ValueError")
    start = '{"stream":"answer","offset":"' + str(writer.epoch)
    assert viewer.got == [
        start + '-1","data":"a"}',
        start + '-2","data":{"b":1}}',
        start + '-3","data":"c"}',
        start + '-3","error":"ValueError"}',
    ]
    assert (GROUP_DONE, None, "stream:answer") in table.events()
    assert len(table.connections.followers) == table.connections.followers.streams == 0
    assert table.bus.groups == []


def test_one_page_and_one_broadcast_serve_all_followers(table: Table) -> None:
    writer = Writer(table)
    viewers = [Viewer(table) for _ in range(3)]
    before = table.connections.counts["stream page"]
    writer.append(1)
    writer.append(2, 3)
    assert all(viewer.got == ["1", "2", "3"] for viewer in viewers)
    assert table.connections.counts["stream page"] == before
    assert table.bus.groups == ["stream:answer"]


def test_followers_at_different_offsets_soon_share_the_reads(table: Table) -> None:
    writer = Writer(table)
    writer.append(*range(1000))
    followers = table.connections.followers
    followers.hold()
    viewers = [Viewer(table, writer.offset(after)) for after in range(100)]
    followers.go_on()
    assert [len(viewer.got) for viewer in viewers] == [1000 - after for after in range(100)]
    assert table.connections.counts["stream page"] < 110


def test_an_absent_stream_is_read_now_and_then(table: Table) -> None:
    Viewer(table)
    before = table.connections.counts["stream page"]
    for _ in range(50):
        table.pass_time(1.0)
    assert table.connections.counts["stream page"] == before + 1, "once more when its data does not come back"


def test_a_large_page_is_written_for_some_followers_at_a_time(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(followers, "BYTES_AT_ONCE", 3 * followers.ENTRY_COST)
    most = 0
    on_page = followers.Followers._on_page

    def count(self: Any, stream: Any, *page: Any) -> None:
        nonlocal most
        before = sum(len(viewer.got) for viewer in viewers)
        on_page(self, stream, *page)
        most = max(most, sum(len(viewer.got) for viewer in viewers) - before)

    monkeypatch.setattr(followers.Followers, "_on_page", count)
    viewers: list[Viewer] = []
    viewers += [Viewer(table) for _ in range(10)]
    writer = Writer(table)
    writer.append(1)
    assert all(viewer.got == ["1"] for viewer in viewers)
    assert most == 3
    writer.append(2)
    assert all(viewer.got == ["1", "2"] for viewer in viewers)
    monkeypatch.setattr(followers, "BYTES_AT_ONCE", 4000)
    writer.append("x" * 1000)
    most = 0
    writer.store("y" * 2000)
    table.connections.interrupted()
    assert [len(viewer.got) for viewer in viewers] == [4] * 10
    assert most == 2, "the size of what is read counts, and not of what is kept"


def test_a_large_broadcast_for_many_templates_is_read_by_some_at_a_time(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = Writer(table)
    viewers = [Viewer(table, template={"entry": f"{number}: {{text}}"}) for number in range(10)]
    monkeypatch.setattr(followers, "BYTES_AT_ONCE", 5 * followers.ENTRY_COST)
    before = table.connections.counts["stream page"]
    writer.append("x")
    assert table.connections.counts["stream page"] == before + 2
    assert [viewer.got for viewer in viewers] == [[f"{number}: x"] for number in range(10)]
    for viewer in viewers[5:]:
        viewer.connection.client_gone()
    writer.append("y")
    assert table.connections.counts["stream page"] == before + 2
    assert viewers[0].got == ["0: x", "0: y"]


def test_templates_are_each_encoded(table: Table) -> None:
    writer = Writer(table)
    raw, page = Viewer(table, template={"raw": True}), Viewer(table, template={"entry": "<i>{html}</i>", "end": None})
    writer.append("a<b", b"\x00")
    writer.end()
    assert raw.got[:2] == ["a<b", b"\x00"]
    assert page.got == ["<i>a&lt;b</i>", "<i>\x00</i>"]


def test_a_broadcast_that_is_lost_is_read(table: Table) -> None:
    writer = Writer(table)
    viewer = Viewer(table)
    writer.store("lost")
    writer.append("heard")
    assert viewer.got == ['"lost"', '"heard"']


def test_a_slow_client_gets_pages_and_misses_nothing(table: Table) -> None:
    writer = Writer(table)
    slow, quick = Viewer(table), Viewer(table)
    slow.terminator.write_paused = True
    for number in range(450):
        writer.append(number)
    assert (len(slow.got), len(quick.got)) == (0, 450)
    slow.terminator.write_paused = False
    slow.connection.acknowledge()
    assert slow.got == quick.got


def test_a_slow_client_gets_one_page_at_a_time(table: Table) -> None:
    writer = Writer(table)
    writer.append(*range(450))
    viewer = Viewer(table, after=writer.offset(450))
    viewer.post(UNFOLLOW, "answer")
    viewer.terminator.write_paused = True
    viewer.follow()
    assert viewer.got == []
    viewer.terminator.write_paused = False
    viewer.connection.acknowledge()
    assert viewer.got == [str(number) for number in range(450)]


def test_a_slow_client_gets_no_more_of_the_other_streams_that_it_follows(table: Table) -> None:
    writers = [Writer(table, f"answer.{number}") for number in range(5)]
    for writer in writers:
        writer.append("a")
    viewer = Viewer(table)
    room = iter([False, True, *[True] * 100])  # the first page fills the buffer
    with pytest.MonkeyPatch.context() as patch:
        written = viewer.terminator.write_shared

        def write_shared(*args: Any) -> None:
            written(*args)
            viewer.terminator.write_paused = next(room, True)

        patch.setattr(viewer.terminator, "write_shared", write_shared)
        for number in range(5):
            viewer.follow(stream=f"answer.{number}")
        assert len(viewer.got) == 2
    viewer.terminator.write_paused = False
    viewer.connection.acknowledge()
    assert len(viewer.got) == 5


def test_a_further_run_goes_on_where_the_client_is(table: Table) -> None:
    writer = Writer(table)
    viewer = Viewer(table)
    writer.append(1)
    viewer.post(HANDOVER)
    writer.append(2)  # between the two runs
    viewer.worker, viewer.sent = OTHER, 1
    table.frames(accept(1, attempt=2, resumable=True), sender=OTHER)
    viewer.follow()
    writer.append(3)
    assert viewer.got == ["1", "2", "3"]
    assert (GROUP_DONE, None, "stream:answer") in table.events(OTHER)


def test_the_end_is_told_once_and_the_next_answer_follows(table: Table) -> None:
    writer = Writer(table)
    viewer = Viewer(table)
    writer.append(1)
    writer.end()
    viewer.follow()
    assert viewer.got == ["1", "end"]
    again = Writer(table)
    again.append(2)
    assert viewer.got == ["1", "end", "reset", "2"]


def test_unfollow_forgets_the_offset(table: Table) -> None:
    writer = Writer(table)
    viewer = Viewer(table)
    writer.append(1)
    viewer.post(UNFOLLOW, "answer")
    writer.append(2)
    assert viewer.got == ["1"]
    viewer.follow()
    assert viewer.got == ["1", "1", "2"]
    viewer.post(UNFOLLOW, "other")
    assert [event[2] for event in table.events()] == ["stream:answer"] * 3 + ["stream:other"]


def test_a_client_that_leaves_follows_no_more(table: Table) -> None:
    writer = Writer(table)
    viewer = Viewer(table)
    viewer.connection.client_gone()
    writer.append(1)
    assert viewer.got == []
    assert table.connections.followers.streams == 0
    assert table.bus.groups == []


def test_a_connection_follows_so_many_streams_and_ended_ones_make_room() -> None:
    table = Table(max_follows=2)
    writer = Writer(table)
    viewer = Viewer(table)
    for stream in ("b", "c"):
        viewer.follow(stream=stream)
    writer.end()
    viewer.follow(stream="d")
    answers = {event[2]: event[1] for event in table.events() if event[0] == GROUP_DONE}
    assert answers.pop("stream:c") == (
        "a connection cannot follow another stream: it follows as many as --max-follows allows (2)"
    )
    assert answers == {"stream:answer": None, "stream:b": None, "stream:d": None}


def test_nothing_is_followed_before_the_accept(table: Table) -> None:
    connection, _ = table.open()
    table.frames((EVENT, connection.number, 1, 0, 0, FOLLOW, "answer", "0", pack({})))
    [answer] = table.events()
    assert "waiting for websocket.accept" in answer[1]


def test_a_layer_that_is_away_is_told_and_pages_are_read_later(table: Table, monkeypatch: Any) -> None:
    async def away(*args: Any) -> None:
        raise LayerUnavailable("away")

    writer = Writer(table)
    writer.append(1)
    with monkeypatch.context() as patch:
        patch.setattr(table.bus, "join_group", away)
        viewer = Viewer(table)
    assert (GROUP_DONE, "away", "stream:answer") in table.events()
    viewer.follow()
    table.pass_time()
    with monkeypatch.context() as patch:
        patch.setattr(table.connections.followers, "_read_page", away)
        viewer.follow()
        table.connections.interrupted()
    writer.append(2)
    table.pass_time()
    assert viewer.got == ["1", "2"]


def test_a_call_that_fails_undoes_no_later_one(table: Table, monkeypatch: Any) -> None:
    viewer = Viewer(table)
    joins = iter((True, False))
    join_group = table.bus.join_group

    async def away_once(group: str) -> None:
        if not next(joins):
            await join_group(group)
            return
        viewer.sent += 1  # this one is being handled
        viewer.post(UNFOLLOW, "other")
        viewer.follow(stream="other")
        raise LayerUnavailable("away")

    monkeypatch.setattr(table.bus, "join_group", away_once)
    viewer.follow(stream="other")
    Writer(table, "other").append("a")
    assert viewer.got == ['"a"']
    viewer.connection.client_gone()
    assert table.connections.followers.streams == 0


def test_a_call_is_answered_while_a_move_begins(table: Table) -> None:
    Writer(table).append(1)
    followers = table.connections.followers
    followers.hold()  # the frames that have been read are handled yet
    viewer = Viewer(table)
    assert (GROUP_DONE, None, "stream:answer") in table.events()
    assert viewer.got == []
    followers.go_on()
    assert viewer.got == ["1"]


def test_pages_are_read_for_a_while_after_an_interruption(table: Table) -> None:
    writer = Writer(table)
    viewer = Viewer(table)
    table.connections.interrupted()
    for number in range(1, 6):
        writer.store(number)  # its broadcast waits
        table.pass_time(0.6)
        assert viewer.got == [str(each) for each in range(1, number + 1)]
    table.pass_time(5)
    writer.store(6)
    table.pass_time(1)
    assert len(viewer.got) == 5
    writer.append(7)
    assert viewer.got[5:] == ["6", "7"]


def test_events_of_apps_are_written_as_they_are(table: Table) -> None:
    writer = Writer(table)
    viewer = Viewer(table, template={"kind": "events"})
    writer.append({"type": "websocket.send", "text": "a"}, {"type": "websocket.send"}, "no event")
    writer.append({"type": "websocket.send", "text": "b"})
    assert viewer.terminator.written[1:] == [(MESSAGE_SENT, "a"), (MESSAGE_SENT, "b")]
    assert table.connections.counts["bad entry"] == 2


ODD = [None, True, -1, 2**70, 1.5, "x", b"x", (), [1], {}, {1: 2}, {(1, 2): 3}]


@pytest.mark.parametrize("key", ["type", "stream", "epoch", "first", "items", "state", "error", "left"])
def test_odd_broadcasts_do_no_harm(table: Table, key: str) -> None:
    writer = Writer(table)
    viewer = Viewer(table)
    message = {**Broadcast("answer", writer.epoch, 1, ["x"]).message(), "error": "", "left": None}
    for odd in ODD:
        table.frames((GROUP_MESSAGE, "stream:answer", {**message, key: odd}))
        table.frames((GROUP_MESSAGE, f"stream:{odd}", message))
        table.frames((GROUP_MESSAGE, "stream:answer", {name: message[name] for name in message if name != key}))
    assert not table.connections.counts["fault"]
    assert not viewer.terminator.aborted


@pytest.mark.parametrize("item", ODD)
def test_odd_entries_do_no_harm(table: Table, item: Any) -> None:
    if item == 2**70:
        return
    writer = Writer(table)
    viewers = [Viewer(table, template=template) for template in ({}, {"raw": True}, {"kind": "events"})]
    writer.append(item)
    writer.end()
    assert not table.connections.counts["fault"]
    assert len(viewers[0].got) == 2


# Responses without a run of the app.


@pytest.mark.parametrize("head", [HEAD, (EVENT_STREAM, *HEAD[1:])])
def test_a_detached_response_needs_no_worker(head: Any) -> None:
    client = Response(head=head)
    writer = Writer(client.table)
    client.table.dead()
    writer.append("a", "b\nc")
    writer.end()
    start = f"id: {writer.epoch}".encode()
    assert client.body == (
        b":\n\n" + start + b'-1\ndata: "a"\n\n' + start + b'-2\ndata: "b\\nc"\n\n'
        b"" + start + b"-2\nevent: end\ndata: null\n\n"
    )
    assert client.transport.written.endswith(b"0\r\n\r\n")
    assert not client.transport.closed
    assert len(client.connections) == 0
    client.send(get("/next"))
    assert client.requests[-1].raw_path == b"/next"


def test_frames_of_the_run_that_has_ended_are_refused() -> None:
    client = Response()
    client.post(RESPONSE_BODY, b"late")
    assert (SUPERSEDED, 1, 1) in client.table.posted()
    client.table.frames((EVENT, 1, 2, 0, 0, RESPONSE_BODY, b"forged"))
    assert b"late" not in client.transport.written
    assert b"forged" not in client.transport.written


def test_http_1_0_gets_the_stream_without_chunks() -> None:
    client = Response(version="1.0")
    writer = Writer(client.table)
    writer.append(1)
    writer.end()
    assert client.transport.written.endswith(
        f":\n\nid: {writer.epoch}-1\ndata: 1\n\nid: {writer.epoch}-1\nevent: end\ndata: null\n\n".encode()
    )
    assert client.transport.closed


def test_a_silent_stream_gets_comments() -> None:
    client = Response(stream_keep_alive=20.0)
    client.table.pass_time(19)
    assert client.body == b":\n\n"
    client.table.pass_time(2)
    assert client.body == b":\n\n:\n\n"
    Writer(client.table).append(1)
    client.table.pass_time(19)
    assert client.body.count(b":\n\n") == 2


def test_a_page_for_another_viewer_does_not_keep_a_silent_one_waiting() -> None:
    client = Response(stream_keep_alive=20.0)
    Writer(client.table).append("a")
    client.table.pass_time(15)
    Viewer(client.table)
    client.table.pass_time(6)
    assert client.body.count(b":\n\n") == 2


def test_entries_for_others_do_not_keep_a_silent_one_waiting() -> None:
    client = Socket(stream_keep_alive=20.0)
    writer = Writer(client.table)
    client.send(get("/answer"))
    client.post(*HEAD)
    client.post(DETACH, "answer", writer.offset(999), SSE)  # there is no such entry yet
    Viewer(client.table)
    for number in range(5):
        client.table.pass_time(5)
        writer.append(number)
    assert b"data" not in client.transport.written
    assert client.transport.written.count(b":\n\n") == 1


def test_a_server_that_stops_has_the_client_come_back() -> None:
    client = Response()
    writer = Writer(client.table)
    writer.append(1)
    client.protocol.shut_down()
    assert f"id: {writer.epoch}-1\ndata: 1\n\nretry: ".encode() in client.body
    assert client.transport.written.endswith(b"0\r\n\r\n")
    assert len(client.connections) == len(client.connections.followers) == 0


def test_a_client_that_leaves_a_detached_response() -> None:
    client = Response()
    client.protocol.connection_lost(None)
    assert len(client.connections) == client.connections.followers.streams == 0
    assert (HTTP_DISCONNECT, True) not in client.table.events()


def test_a_detached_response_ends_when_its_user_is_closed() -> None:
    client = Response()
    assert client.connection.close(4001, "")
    assert client.transport.written.endswith(b"0\r\n\r\n")
    assert len(client.connections) == client.connections.followers.streams == 0


def test_a_client_that_may_have_left_gets_comments_which_tell() -> None:
    client = Response()
    writer = Writer(client.table)
    writer.append(1)
    assert client.protocol.eof_received()
    for _ in range(2):
        client.protocol.expire(client.connections.now)
    assert client.body.endswith(b"data: 1\n\n:\n\n:\n\n")
    writer.append(2)
    writer.end()
    assert client.body.count(b"data: ") == 3
    assert client.transport.closed


def test_a_client_that_leaves_before_the_response_is_detached() -> None:
    client = Socket()
    client.send(get("/answer"))
    client.post(*HEAD)
    client.protocol.connection_lost(None)
    client.post(DETACH, "answer", "0", SSE)
    assert len(client.connections) == client.connections.followers.streams == 0


def test_a_detached_response_waits_for_a_layer_that_is_away(monkeypatch: Any) -> None:
    async def away(*args: Any) -> None:
        raise LayerUnavailable("away")

    client = Socket()
    writer = Writer(client.table)
    writer.append(1)
    with monkeypatch.context() as patch:
        patch.setattr(client.table.bus, "join_group", away)
        client.send(get("/answer"))
        client.post(*HEAD)
        client.post(DETACH, "answer", "0", SSE)
    assert b"data" not in client.transport.written
    client.table.pass_time()
    assert b"data: 1" in client.transport.written


# The move to another process.


def test_a_response_moves_with_its_offset() -> None:
    client = Response()
    writer = Writer(client.table)
    writer.append(1)
    client.transport.written = b""
    moved = Moved(client)
    moved.table.streams._streams = client.table.streams._streams
    writer._table = moved.table
    assert next(iter(moved.connections)).state is ConnectionState.DETACHED
    writer.append(2)
    writer.end()
    moved.table.pass_time()
    written = moved.transport.written
    assert written.count(b"data: ") == 2
    assert b"data: 2\n\n" in written
    assert written.endswith(b"0\r\n\r\n")
    assert len(moved.connections) == 0


def test_a_websocket_moves_with_its_offset() -> None:
    client = Socket()
    client.send(get("/chat", HANDSHAKE))
    client.post(ACCEPT, None, b"", True)
    writer = Writer(client.table)
    client.post(FOLLOW, "answer", "0", pack({"entry": "{data}"}))
    writer.append("first")
    client.transport.written = b""
    moved = Moved(client)
    moved.table.streams._streams = client.table.streams._streams
    writer._table = moved.table
    writer.append("second")
    moved.table.pass_time()
    assert b"first" not in moved.transport.written
    assert moved.transport.written.count(b"second") == 1
