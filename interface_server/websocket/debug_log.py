"""The log of the WebSocket protocol at the level DEBUG, which names each frame and shows none of its content."""

from __future__ import annotations

import logging

from websockets.frames import Frame

logger = logging.getLogger("asgibus.websockets")


def _without_content(record: logging.LogRecord) -> bool:
    """Put the type and the size of a frame in the place of the frame, whose text is its beginning and its end."""
    if isinstance(record.args, tuple):
        record.args = tuple(_named(each) if isinstance(each, Frame) else each for each in record.args)
    return True


def _named(frame: Frame) -> str:
    return f"{frame.opcode.name} [{len(frame.data)} bytes{'' if frame.fin else ', continued'}]"


logger.addFilter(_without_content)
