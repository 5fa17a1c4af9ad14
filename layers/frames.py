"""The kinds of frames in a mailbox, all in one list so that no two share a number.

A frame is a tuple. Its first item is its kind, and the kind decides which fields follow. Kinds below
`FIRST_PROTOCOL_KIND` belong to the channel layer. The others belong to the protocol between interface servers and
workers; a layer carries them without reading them.

Every frame of the protocol names the connection (the interface server's number for it) and the attempt (which run of
the app it belongs to). Frames of an earlier attempt are ignored. The sender is named once for a whole batch of frames.

Each kind also has a plain int of the same name, for two reasons: frames must be packed and compared by type as plain
ints, and up to Python 3.11 it takes 50 ns to look up a member on its class.
"""

from __future__ import annotations

from enum import IntEnum, unique
from typing import Final

FIRST_PROTOCOL_KIND: Final = 16


@unique
class FrameKind(IntEnum):
    """The kind of a frame, with the fields that follow it."""

    MESSAGE = 0
    """(local part, message): `send` was called with a process-local name of this mailbox."""
    GROUP_MESSAGE = 1
    """(group, message): `group_send` was called, and this mailbox is a member of the group."""
    DEAD = 2
    """(mailbox, declared): the process of that mailbox is gone, and all frames that it posted here stand before this
    one. `declared`: its supervisor has said so; else its lease has ended."""
    MESSAGE_ID = 4
    """(source, number): the frames that follow in this entry are taken once."""
    LOCAL_MESSAGES = 5
    """(local parts, packed message, delay in seconds, capacity): a message for process-local channels of this mailbox,
    each of which holds so many unread messages."""
    MEMBERSHIP = 6
    """(group, channel, joins): another process has added a channel of this mailbox to a group, or removed it."""

    EVENT = FIRST_PROTOCOL_KIND
    """(connection, attempt, sequence number, acknowledged, code, field, …): an event of `protocol.events`."""
    CLAIMED = FIRST_PROTOCOL_KIND + 1
    """(connection, attempt): the sender serves this connection."""
    ACK = FIRST_PROTOCOL_KIND + 2
    """(connection, attempt, acknowledged): every event below that number was consumed."""
    RESET = FIRST_PROTOCOL_KIND + 3
    """(connection, attempt): the sender does not know this connection."""
    RESEND = FIRST_PROTOCOL_KIND + 4
    """(connection, attempt, number): events from that number on are missing; send them again."""
    PROBE = FIRST_PROTOCOL_KIND + 5
    """(connection, attempt, number): the sender has sent every event below that number. The answer is a RESEND, an ACK
    or a RESET."""
    ABANDONED = FIRST_PROTOCOL_KIND + 6
    """(connection, attempt): the worker that claimed this connection died before it sent CLAIMED."""
    SUPERSEDED = FIRST_PROTOCOL_KIND + 7
    """(connection, attempt): another run serves this connection."""
    DECLINED = FIRST_PROTOCOL_KIND + 8
    """(connection, attempt): the sender stops, and has not claimed this connection, which was offered to it alone."""


MESSAGE: Final = FrameKind.MESSAGE.value
GROUP_MESSAGE: Final = FrameKind.GROUP_MESSAGE.value
DEAD: Final = FrameKind.DEAD.value
MESSAGE_ID: Final = FrameKind.MESSAGE_ID.value
LOCAL_MESSAGES: Final = FrameKind.LOCAL_MESSAGES.value
MEMBERSHIP: Final = FrameKind.MEMBERSHIP.value
EVENT: Final = FrameKind.EVENT.value
CLAIMED: Final = FrameKind.CLAIMED.value
ACK: Final = FrameKind.ACK.value
RESET: Final = FrameKind.RESET.value
RESEND: Final = FrameKind.RESEND.value
PROBE: Final = FrameKind.PROBE.value
ABANDONED: Final = FrameKind.ABANDONED.value
SUPERSEDED: Final = FrameKind.SUPERSEDED.value
DECLINED: Final = FrameKind.DECLINED.value

ACKNOWLEDGED: Final = 4
"""The index in an EVENT frame of the number below which the sender has consumed the other direction's events."""
EVENT_OFFSET: Final = 5
"""The index at which the event begins in an EVENT frame."""
