"""The DEBUG log of the WebSocket protocol: it names each frame, and shows no content."""

from __future__ import annotations

import logging

from websockets.frames import Frame

logger = logging.getLogger("asgibus.websockets")


def _without_content(record: logging.LogRecord) -> bool:
    """Replace frames by their type and size. The text of a frame shows the beginning and the end of its content."""
    if isinstance(record.args, tuple):
        record.args = tuple(_describe(each) if isinstance(each, Frame) else each for each in record.args)
    return True


def _describe(frame: Frame) -> str:
    return f"{frame.opcode.name} [{len(frame.data)} bytes{'' if frame.fin else ', continued'}]"


logger.addFilter(_without_content)
