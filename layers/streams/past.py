"""Messages of groups that are kept: the past of a group is the stream `group:<group>`.

The store numbers such a message when it is kept. Members that have joined with an offset follow that stream; the others
get the message from the group, as any other one.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final, Protocol

from asgibus.layers.codec import MESSAGE_BYTES, pack_item, pack_message
from asgibus.layers.errors import MessageTooLarge
from asgibus.layers.names import require_group
from asgibus.layers.settings import StreamLimits
from asgibus.layers.streams.offsets import Offset
from asgibus.layers.streams.page import Broadcast
from asgibus.layers.streams.store import StreamStore

KEPT: Final = "asgibus.kept"
"""The member of a message to a group that says at which offset it is kept."""
PLACEHOLDER: Final = "asgibus.placeholder"
"""The member of a kept message that names the text to be replaced by its offset."""
MAX_ID_LENGTH: Final = 200
KEPT_BYTES: Final = MESSAGE_BYTES - 1024
"""The largest kept message, packed: its offset, and the name of the stream, are sent with it."""


class GroupLayer(Protocol):
    """A channel layer, as messages to groups need it."""

    @property
    def group_expiry(self) -> float: ...

    async def send_to_group(self, group: str, message: dict[str, Any]) -> None: ...


def group_past(group: str) -> str:
    """Return the stream of the kept messages of a group."""
    return f"group:{group}"


def place_offset(message: Mapping[str, Any], offset: Offset) -> Mapping[str, Any]:
    """Return a kept message with its offset in its text, if it names a placeholder."""
    placeholder, text = message.get(PLACEHOLDER), message.get("text")
    if not isinstance(placeholder, str):
        return message
    placed = {name: value for name, value in message.items() if name != PLACEHOLDER}
    if isinstance(text, str):
        placed["text"] = text.replace(placeholder, str(offset), 1)
    return placed


async def send_to_group(
    layer: GroupLayer,
    store: StreamStore,
    group: str,
    message: dict[str, Any],
    keep: int | None,
    message_id: str | None,
    placeholder: str | None,
) -> bool:
    """Send a message to a group, and keep it first if `keep` says so: see `ChannelLayer.group_send`.

    Args:
        layer: The layer.
        store: Its storage of streams.
        group: The group.
        message: The message.
        keep: How many messages are kept; None to keep none.
        message_id: An id. A message whose id is that of a kept one is not kept and sent again.
        placeholder: The text in `message["text"]` that is replaced by the offset, where it occurs first.

    Returns:
        Whether it was sent: False if it was kept already.

    Raises:
        TypeError: It is no valid message, or no valid group.
        ValueError: `keep`, the id or the placeholder is not valid.
        MessageTooLarge: The message is larger than 16 MiB.
    """
    require_group(group)
    if keep is None:
        if message_id is not None or placeholder is not None:
            raise ValueError("the id and the placeholder are those of a message that is kept: pass keep=…, too")
        await layer.send_to_group(group, message)
        return True
    try:
        limits = StreamLimits(keep, kept=layer.group_expiry)
    except ValueError:
        raise ValueError(f"keep is the number of messages that are kept, from 1, not {keep!r}") from None
    if message_id is None:  # the message is kept once if the connection to the store breaks
        message_id = secrets.token_hex(8)
    _require_id(message_id)
    pack_message(message)
    item = dict(message)
    if placeholder is not None:
        if not isinstance(message.get("text"), str) or placeholder not in message["text"]:
            raise ValueError(f"the placeholder {placeholder!r:.50} does not occur in the text of the message")
        item[PLACEHOLDER] = placeholder
    name = group_past(group)
    packed = pack_item([item])
    if len(packed) > KEPT_BYTES:
        raise MessageTooLarge(len(packed), KEPT_BYTES)
    is_new, offset = await store.keep(name, packed, limits, message_id)
    if is_new:
        await layer.send_to_group(group, {**place_offset(item, offset), KEPT: str(offset)})
        await store.messages.tell(Broadcast(name, offset.epoch, offset.number, [item]))
    else:  # who has kept it may have died before all were told
        await store.messages.tell(Broadcast(name, offset.epoch, offset.number + 1))
    return is_new


def _require_id(message_id: object) -> None:
    """Raise ValueError if an id is not valid."""
    if isinstance(message_id, str) and 0 < len(message_id) <= MAX_ID_LENGTH:
        with suppress(UnicodeEncodeError):  # half of a surrogate pair
            message_id.encode()
            return
    raise ValueError(f"the id of a message is a text of 1 to {MAX_ID_LENGTH} characters, not {message_id!r:.50}")
