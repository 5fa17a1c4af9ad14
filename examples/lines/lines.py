"""A terminator for lines over TCP: scope type `line`; events `line.receive`, `.disconnect`, `.send` and `.close`."""

import asyncio
import math

from asgibus.interface_server.terminator import ABORT, OTHER_RECEIVED, OTHER_SENT, message_of, other

LONGEST = 64 * 1024  # the largest line, in bytes
CLOSE_SECONDS = 10.0  # the time for a client to read the rest


class LineTerminator(asyncio.Protocol):
    """One client: `Terminator`, `Holder` and `SliceParser` in one object."""

    def __init__(self, host):
        self.host = host
        self.deadline = math.inf
        self.write_paused = False
        self.unfinished = b""

    def connection_made(self, transport):
        self.transport = transport
        self.input = self.host.sliced_input(transport, self)
        client, server = (transport.get_extra_info(name)[:2] for name in ("peername", "sockname"))
        self.connection = self.host.connections.open_other("line", {"client": client, "server": server}, self)
        if not self.host.admit(self):
            transport.abort()

    def data_received(self, data):
        self.input.feed(data)

    def parse(self, data):
        *lines, self.unfinished = (self.unfinished + data).split(b"\n")
        for line in lines:
            self.connection.event(other(OTHER_RECEIVED, {"type": "line.receive", "line": line}))
        if len(self.unfinished) > LONGEST:
            self.transport.abort()

    def connection_lost(self, error):
        self.host.forget(self)
        self.connection.client_gone()

    def pause_writing(self):
        self.write_paused = True

    def resume_writing(self):
        self.write_paused = False
        self.connection.acknowledge()

    # Terminator.

    def write_event(self, event):
        if event[0] == OTHER_SENT:
            self.transport.write(message_of(event)["line"] + b"\n")
        elif event[0] == ABORT:
            self.transport.abort()
        else:  # OTHER_CLOSE
            self.close()

    def flush(self):
        pass

    def broadcast(self, event, shared):
        self.connection.plain(event)

    def keeps_up(self):
        return self.transport.get_write_buffer_size() <= self.host.settings.slow_client_buffer

    def pause(self):
        self.input.pause()

    def resume(self):
        self.input.resume()

    def fail(self, status, close_code):
        self.close()

    def abort(self):
        self.transport.abort()

    # Holder.

    def expire(self, now):
        self.transport.abort()

    def shut_down(self):
        self.connection.client_gone()
        self.close()

    def close(self):
        self.deadline = self.host.now + CLOSE_SECONDS
        self.transport.close()


class LineListener:
    """Make listeners for lines of text: the `Factory` that the entry point names."""

    kind = "line"

    def __init__(self, value, settings):
        name, _, port = (value or "").rpartition(":")
        if not name or not port.isdigit():
            raise ValueError(f"{value!r} is not of the form HOST:PORT")
        self.address = name, int(port)

    async def start(self, host):
        loop = asyncio.get_running_loop()
        self.server = await loop.create_server(lambda: LineTerminator(host), *self.address, reuse_port=host.shared)
        return "line://{}:{}".format(*self.server.sockets[0].getsockname()[:2])

    def stop(self):
        self.server.close()
