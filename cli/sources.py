"""The files of an app that is being written: which they are, and when they change."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from fnmatch import fnmatch
from importlib.util import cache_from_source, find_spec
from pathlib import Path

import anyio
import click

from asgibus.cli.settings import ProcessSettings

INCLUDED = ("*.py",)
EXCLUDED = (".*", "__pycache__", "node_modules")  # folders and files that tools write, and editors for a moment


class Sources:
    """The files below some folders whose names or paths (seen from the folder) are included and not excluded."""

    def __init__(self, folders: Sequence[str], includes: Sequence[str] = (), excludes: Sequence[str] = ()) -> None:
        self._folders = list(dict.fromkeys(Path(folder).resolve() for folder in folders))
        self._includes = (*INCLUDED, *includes)
        self._excludes = (*EXCLUDED, *excludes)

    async def changes(self, stop: anyio.Event) -> AsyncIterator[list[str]]:
        """The files that were written, made or removed, as soon as that is over, until `stop` is set.

        Raises OSError if the folders cannot be watched.
        """
        from watchfiles import awatch  # noqa: PLC0415  # an extra, needed for this alone

        watched = awatch(
            *self._folders,
            watch_filter=lambda _, path: path in self,
            stop_event=stop,
            ignore_permission_denied=True,
        )
        async for changes in watched:
            for _, path in changes:
                _forget_compiled(path)
            yield sorted({self._shown(path) for _, path in changes})

    def __contains__(self, path: str) -> bool:
        return any(self._belongs(Path(path).relative_to(folder)) for folder in self._above(path))

    def _belongs(self, path: Path) -> bool:
        if any(fnmatch(part, glob) for part in path.parts for glob in self._excludes):
            return False
        if any(fnmatch(str(path), glob) for glob in self._excludes):
            return False
        return any(fnmatch(path.name, glob) or fnmatch(str(path), glob) for glob in self._includes)

    def _above(self, path: str) -> list[Path]:
        return [folder for folder in self._folders if Path(path).is_relative_to(folder)]

    def _shown(self, path: str) -> str:
        return str(Path(path).relative_to(self._above(path)[0]))


def _forget_compiled(path: str) -> None:
    """Remove the compiled form of a module. Python would still take it for good if time (in seconds) and size agree."""
    with suppress(OSError, NotImplementedError):
        Path(cache_from_source(path)).unlink()


def sources_of(process: ProcessSettings, app_dir: str) -> Sources | None:
    """The files that the options of a command ask to watch. Raises click.UsageError if that is not possible."""
    if not process.reload:
        return None
    if find_spec("watchfiles") is None:
        raise click.UsageError("--reload needs watchfiles: pip install 'asgibus[reload]'")
    folders = process.reload_dirs or (".", app_dir or ".")
    return Sources(folders, process.reload_includes, process.reload_excludes)
