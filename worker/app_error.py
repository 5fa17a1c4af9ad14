"""Errors of apps that cannot be run, with the part of the traceback that belongs to the app."""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

STDLIB = Path(os.__file__).parent
OURS = {"asgibus", "importlib"}  # packages whose frames come before the app's and do not explain the error
LONGEST_TEXT = 300  # characters of a message in one line of the log


class AppError(Exception):
    """An error that keeps the app from running.

    Args:
        text: What is wrong, where, and what to do, in one line.
        trace: The traceback from the first frame of the app on; empty if no code of the app has raised.
    """

    def __init__(self, text: str, trace: str = "") -> None:
        super().__init__(text)
        self.trace = trace


def trace_of(error: BaseException) -> str:
    """Return the traceback as Python prints it, without the frames before the app's; empty if the app has no frame."""
    has_frames = False
    for each in _chain(error):
        each.__traceback__ = _of_app(each.__traceback__)
        has_frames = has_frames or each.__traceback__ is not None
    if has_frames:
        return "".join(traceback.format_exception(error))
    if isinstance(error, SyntaxError):  # no code of the file has run, and the error itself shows the line
        return "".join(traceback.format_exception_only(error))
    return ""


def line_of(error: BaseException) -> str:
    """Return the type and the message of an error, and where in the app it was raised, in one line."""
    if isinstance(error, SyntaxError) and error.filename:
        text, place = error.msg, f" ({error.filename}, line {error.lineno})"
    else:
        frames = traceback.extract_tb(_of_app(error.__traceback__))
        frame = next((each for each in reversed(frames) if _is_of_app(each.filename)), None)
        text, place = str(error), f" ({frame.filename}, line {frame.lineno})" if frame else ""
    text = " ".join(text.split())
    if len(text) > LONGEST_TEXT:
        text = f"{text[:LONGEST_TEXT]}…"
    return f"{type(error).__name__}{': ' if text else ''}{text}{place}"


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, its causes and its contexts."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        each = waiting.pop()
        if each is not None and id(each) not in seen:
            seen.add(id(each))
            yield each
            waiting += each.__cause__, each.__context__


def _of_app(trace: TracebackType | None) -> TracebackType | None:
    while trace is not None and trace.tb_frame.f_globals.get("__name__", "").partition(".")[0] in OURS:
        trace = trace.tb_next
    return trace


def _is_of_app(filename: str) -> bool:
    """Whether a file belongs neither to Python nor to an installed package."""
    if filename.startswith("<"):
        return False
    path = Path(filename)
    libraries = "site-packages", "dist-packages"
    return not (path.is_relative_to(STDLIB) or any(each in path.parts for each in libraries))
