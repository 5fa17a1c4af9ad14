"""What several context managers of the tests have in common."""

from contextlib import ExitStack
from types import TracebackType
from typing import Self


class Together:
    """A context manager for what begins and ends together: if its beginning fails, what has begun is ended again."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        """What is to be ended."""

    def __enter__(self) -> Self:
        try:
            self._begin()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _begin(self) -> None:
        raise NotImplementedError
