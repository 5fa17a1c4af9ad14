"""The contract of a channel layer with apps, which has the interface of Channels 4."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any

from asgibus.layers.contract import Bus, Handler, Message, Statistics
from asgibus.layers.errors import ChannelFull, LayerUnavailable, MessageTooLarge
from asgibus.layers.names import require_channel, require_group, require_stream
from asgibus.layers.presence import PresentCount, PresentPage, UserConnection, close_message, user_group
from asgibus.layers.settings import LayerSettings, StreamLimits
from asgibus.layers.streams.past import group_past

if TYPE_CHECKING:
    from asgibus.layers.streams import Stream


class ChannelLayer(ABC):
    """A channel layer: named channels and groups between processes.

    The interface is that of Channels 4, with `bus` and `declare_dead` for the servers. A message is delivered to one
    reader, at most once. Messages are copies: altering a dict after `send` changes nothing.

    All names consist of 1 to 100 ASCII letters, digits, `.`, `-` and `_`; a process-local channel name also has one
    `!`. Calls raise TypeError for other names.
    """

    ChannelFull = ChannelFull
    MessageTooLarge = MessageTooLarge
    extensions: Sequence[str] = ("groups", "flush", "statistics", "delay")

    settings: LayerSettings
    counts: Counter[str]
    """The number of retries, losses and drops by kind, for the metrics."""

    @property
    def expiry(self) -> float:
        """Seconds after which an unread message is dropped."""
        return self.settings.expiry

    @property
    def group_expiry(self) -> float:
        """Seconds after which a membership ends unless it is renewed. Servers renew their own."""
        return self.settings.group_expiry

    @property
    def capacity(self) -> int:
        """The number of unread messages that a channel holds, unless `channel_capacity` matches its name."""
        return self.settings.capacity

    @abstractmethod
    async def send(self, channel: str, message: Message, *, delay: float = 0.0) -> None:
        """Send a message to a channel.

        Args:
            channel: The name of the channel, ordinary or process-local.
            message: A dict of what msgpack knows: None, bool, integers of 64 bits, floats, str, bytes, lists, dicts.
            delay: Seconds after which the message can be received, by the clock of the store. A delayed message counts
                for the capacity, and outlives this process.

        Raises:
            TypeError: The name is not valid, or the message holds another type.
            ValueError: The delay is below 0 or above ten years.
            ChannelFull: The channel holds as many unread messages as its capacity allows. For a process-local channel a
                layer may raise it late; until then, messages over the capacity are dropped and counted.
            MessageTooLarge: The packed message is larger than 16 MiB.
            LayerUnavailable: The store could not be reached in time.
        """

    @abstractmethod
    async def receive(self, channel: str) -> Message:
        """Wait for the next message of a channel. A cancelled call loses no message.

        Args:
            channel: The name of the channel. A process-local channel can be received from only through the layer object
                that made it with `new_channel`, in any event loop.

        Returns:
            A copy of the message.

        Raises:
            TypeError: The name is not valid, or (as ForeignChannel, which is also an AssertionError) another layer
                object made it.
            LayerUnavailable: The store could not be reached in time.
        """

    @abstractmethod
    async def new_channel(self, prefix: str = "specific") -> str:
        """Return a new, unique process-local channel name.

        Args:
            prefix: The beginning of the name.

        Raises:
            TypeError: The prefix is not valid.
        """

    @abstractmethod
    async def group_add(self, group: str, channel: str) -> None:
        """Add a channel to a group.

        Raises:
            TypeError: A name is not valid.
            LayerUnavailable: The store could not be reached in time.
        """

    @abstractmethod
    async def group_discard(self, group: str, channel: str) -> None:
        """Remove a channel from a group; do nothing if it is not a member.

        Raises:
            TypeError: A name is not valid.
            LayerUnavailable: The store could not be reached in time.
        """

    @abstractmethod
    async def group_send(
        self,
        group: str,
        message: Message,
        *,
        keep: int | None = None,
        id: str | None = None,  # noqa: A002
        placeholder: str | None = None,
    ) -> bool:
        """Send a message to every member of a group.

        A member whose channel is full misses the message. That is counted and logged, and never raised.

        Args:
            group: The name of the group.
            message: A dict, as that of `send`.
            keep: How many messages of the group are kept for members that join with `after`; by default this one is
                not. They are kept for `group_expiry` after the last one: see `group_past`.
            id: An id of 1 to 200 characters: while a message with this id is kept, another one is not sent.
            placeholder: A text that occurs in `message["text"]`. It is replaced by the offset of the message where it
                occurs first, so that clients learn the offset.

        Returns:
            True if it was sent, and False if a message with that id was kept.

        Raises:
            TypeError: The name is not valid, or the message holds a type that msgpack does not know.
            ValueError: `keep`, `id` or `placeholder` is not valid.
            MessageTooLarge: The packed message is larger than 16 MiB.
            LayerUnavailable: The store could not be reached in time.
        """

    def stream(self, name: str, limits: StreamLimits | None = None) -> Stream:
        """Return a stream: a named channel whose entries are kept, numbered and followed. There is no IO.

        Args:
            name: The name of the stream.
            limits: What its writers keep, instead of the `stream_limits` of the layer.

        Raises:
            TypeError: The name is not valid, or the limits are no StreamLimits.
            NotImplementedError: The layer has no streams. Those that have some name "streams" in `extensions`.
        """
        return self.any_stream(require_stream(name), limits)

    def group_past(self, group: str) -> Stream:
        """Return the kept messages of a group, to be read. There is no IO.

        Args:
            group: The name of the group.

        Raises:
            TypeError: The name is not valid.
            NotImplementedError: As `stream`.
        """
        return self.any_stream(group_past(require_group(group)))

    def any_stream(self, name: str, limits: StreamLimits | None = None) -> Stream:
        """Return the stream of an app, or that of the kept messages of a group, for servers: see `stream`."""
        raise NotImplementedError(f"{type(self).__name__} has no streams")

    async def present(self, group: str, cursor: str | None = None) -> PresentPage:
        """Return who is in a group: the users of connections that joined it with `group_add(group, present=True)`.

        A user with several connections, at whichever interface servers, is one. A group of more than 1,000 users is
        returned in parts. While users come and go between two calls, a user may be in two parts.

        Args:
            group: The name of the group.
            cursor: The cursor of the part before; None for the first part.

        Raises:
            TypeError: The name is not valid.
            ValueError: The cursor is not one of a part.
            LayerUnavailable: The store could not be reached in time.
        """
        return await self._present(require_group(group), cursor)

    async def present_count(self, group: str) -> PresentCount:
        """Return how many users are in a group, and with how many connections: see `present`.

        Raises:
            TypeError: The name is not valid.
            LayerUnavailable: The store could not be reached in time.
        """
        return await self._present_count(require_group(group))

    async def user_connections(self, user: str) -> list[UserConnection]:
        """Return the connections of a user: those for which an app has called `identify`, the oldest first.

        Raises:
            TypeError: The id of the user is no str.
            ValueError: The id of the user is empty or too long.
            LayerUnavailable: The store could not be reached in time.
        """
        found: dict[str, UserConnection] = {}
        cursor: str | None = None
        while True:
            page = await self._present(user_group(user), cursor)
            found |= {each.user: UserConnection(each.user, each.info, each.since) for each in page.users}
            cursor = page.cursor
            if cursor is None:
                return sorted(found.values(), key=lambda each: (each.since, each.reply_channel))

    async def user_send(self, user: str, event: Message) -> None:
        """Send an ASGI event to all connections of a user, as `group_send` does to all members of a group.

        Raises:
            TypeError: The id of the user is no str, or the event holds a type that msgpack does not know.
            ValueError: The id of the user is empty or too long.
            MessageTooLarge: The packed event is larger than 16 MiB.
            LayerUnavailable: The store could not be reached in time.
        """
        await self.send_to_group(user_group(user), event)

    async def user_close(self, user: str, code: int = 1000, reason: str = "") -> None:
        """Close all connections of a user: WebSockets with this code, and responses at their end.

        The apps get a disconnect. A client may connect again, if the app lets it.

        Args:
            user: The id of the user.
            code: The close code: 1000, or one from 3000 to 4999.
            reason: The close reason, at most 123 bytes.

        Raises:
            TypeError: An argument has another type.
            ValueError: The id, the code or the reason is not valid.
            LayerUnavailable: The store could not be reached in time.
        """
        await self.send_to_group(user_group(user), close_message(code, reason))

    async def _present(self, group: str, cursor: str | None) -> PresentPage:
        """Return users of a group, which may be an internal one."""
        raise NotImplementedError(f"{type(self).__name__} keeps no presence")

    async def _present_count(self, group: str) -> PresentCount:
        """Return the number of users of a group."""
        raise NotImplementedError(f"{type(self).__name__} keeps no presence")

    async def send_to_group(self, group: str, message: Message) -> None:
        """Send a message to every member of a group, of an app or an internal one."""
        raise NotImplementedError(f"{type(self).__name__} keeps no presence")

    def gauges(self) -> dict[str, int]:
        """Return current numbers by their names, for the metrics: writers and readers of streams here."""
        return {}

    @abstractmethod
    async def channel_statistics(self, channel: str) -> Statistics:
        """Return the statistics of a channel. Its messages are not touched.

        Raises:
            TypeError: The name is not valid, or (as ForeignChannel) is that of a process-local channel that another
                layer object made.
            LayerUnavailable: The store could not be reached in time.
        """

    @abstractmethod
    async def global_statistics(self) -> Statistics:
        """Return the statistics of all ordinary channels together.

        Raises:
            LayerUnavailable: The store could not be reached in time.
        """

    @abstractmethod
    async def flush(self) -> None:
        """Delete all messages of channels and all groups of this layer. The connections of the servers are untouched.

        Raises:
            LayerUnavailable: The store could not be reached in time.
        """

    @abstractmethod
    async def close(self) -> None:
        """Close the connections of the running event loop. The layer can be used again afterwards."""

    # Attributes of the layers of Channels and of channels_redis, by their names there.

    async def close_pools(self) -> None:
        """Close the connections of the running event loop, as `close` does; channels_redis has this name."""
        await self.close()

    def get_capacity(self, channel: str) -> int:
        """Return the number of unread messages that a channel holds."""
        return self.settings.capacity_of(channel)

    def valid_channel_name(self, name: object, receive: bool = False) -> bool:  # as there
        """Return True if the name of a channel is valid.

        Args:
            name: The name.
            receive: Ignored, and accepted because Channels has it.

        Raises:
            TypeError: The name is not valid. The text states the rule.
        """
        require_channel(name, whole=True)
        return True

    def valid_group_name(self, name: object) -> bool:
        """Return True if the name of a group is valid.

        Raises:
            TypeError: The name is not valid. The text states the rule.
        """
        require_group(name)
        return True

    @abstractmethod
    async def declare_dead(self, mailbox: str) -> None:
        """Announce to every process on the bus that a process has ended. A supervisor calls this for its children.

        Args:
            mailbox: The mailbox of the process that has ended.

        Raises:
            LayerUnavailable: The store could not be reached in time.
        """

    async def connect(self) -> None:  # noqa: B027  # a layer without a store
        """Connect to the store of the bus. Raises LayerUnavailable."""

    def moved_bus(self, identity: Mapping[str, Any], handler: Handler) -> AbstractAsyncContextManager[Bus]:
        """Join the bus under the identity of another process, frozen until `Bus.thaw`.

        Args:
            identity: The result of `Bus.freeze` in that process.
            handler: The reader of the mailbox.

        Returns:
            A context manager. Entering it raises LayerUnavailable if the store cannot be reached. If it ends before
            `Bus.thaw`, the store is as it was.
        """
        raise LayerUnavailable("this layer cannot be used by another process")

    @abstractmethod
    def bus(self, role: str, handler: Handler) -> AbstractAsyncContextManager[Bus]:
        """Join the bus as a server process: `async with layer.bus("interface", handler) as bus`.

        Args:
            role: The beginning of the mailbox's name.
            handler: The reader of the mailbox.

        Returns:
            A context manager. Entering it raises LayerUnavailable if the store cannot be reached. Later outages do not
            end it.
        """
