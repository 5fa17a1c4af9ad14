"""`--reload`: watch the files of an app."""

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


class WatchedFiles:
    """The files below some folders whose name or path within the folder is included and not excluded."""

    def __init__(self, folders: Sequence[str], includes: Sequence[str] = (), excludes: Sequence[str] = ()) -> None:
        self._folders = list(dict.fromkeys(Path(folder).resolve() for folder in folders))
        self._includes = (*INCLUDED, *includes)
        self._excludes = (*EXCLUDED, *excludes)

    async def changes(self, stop: anyio.Event) -> AsyncIterator[list[str]]:
        """Yield the names of files that were written, created or removed, until `stop` is set.

        Raises:
            OSError: The folders cannot be watched.

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
                _remove_bytecode(path)
            yield sorted({self._short_name(path) for _, path in changes})

    def __contains__(self, path: str) -> bool:
        return any(self._matches(Path(path).relative_to(folder)) for folder in self._folders_of(path))

    def _matches(self, path: Path) -> bool:
        if any(fnmatch(part, glob) for part in path.parts for glob in self._excludes):
            return False
        if any(fnmatch(str(path), glob) for glob in self._excludes):
            return False
        return any(fnmatch(path.name, glob) or fnmatch(str(path), glob) for glob in self._includes)

    def _folders_of(self, path: str) -> list[Path]:
        return [folder for folder in self._folders if Path(path).is_relative_to(folder)]

    def _short_name(self, path: str) -> str:
        return str(Path(path).relative_to(self._folders_of(path)[0]))


def _remove_bytecode(path: str) -> None:
    """Remove the bytecode of a module. Python takes it for current if time (in seconds) and size of the file agree."""
    with suppress(OSError, NotImplementedError):
        Path(cache_from_source(path)).unlink()


def watched_files(process: ProcessSettings, app_dir: str) -> WatchedFiles | None:
    """Return the files to watch, or None without --reload.

    Raises:
        click.UsageError: watchfiles is not installed.

    """
    if not process.reload:
        return None
    if find_spec("watchfiles") is None:
        raise click.UsageError("--reload needs watchfiles: pip install 'asgibus[reload]'")
    folders = process.reload_dirs or (".", app_dir or ".")
    return WatchedFiles(folders, process.reload_includes, process.reload_excludes)
