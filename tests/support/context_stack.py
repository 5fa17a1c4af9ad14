"""A base for context managers that open several things."""

from contextlib import ExitStack
from types import TracebackType
from typing import Self


class ContextStack:
    """Open several context managers with `_open`, and close them together, also when `_open` fails halfway.

    `_open` enters each of them in `self._stack`.
    """

    def __init__(self) -> None:
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        try:
            self._open()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _open(self) -> None:
        raise NotImplementedError
