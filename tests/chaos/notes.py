"""Reader of the notes that the chaos app writes to a file."""

import json
from pathlib import Path
from typing import Any

from support.deadline import wait_until


class Notes:
    """The notes of all runs of the app, in all workers that got `env`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / "notes"
        self.env = {"CHAOS_NOTES": str(self._path)}

    def all(self, kind: str | None = None, **match: Any) -> list[dict[str, Any]]:
        """Return the notes of this kind whose values equal `match`, oldest first."""
        if not self._path.exists():
            return []
        lines = self._path.read_text().rpartition("\n")[0].splitlines()  # the last one may be being written
        return [
            noted
            for noted in map(json.loads, lines)
            if (kind is None or noted["what"] == kind)
            and all(noted.get(name) == value for name, value in match.items())
        ]

    def wait(self, kind: str, count: int = 1, timeout: float | None = None, **match: Any) -> list[dict[str, Any]]:
        """Wait until `count` notes match, then return all that match, oldest first."""
        wait_until(lambda: len(self.all(kind, **match)) >= count, timeout, f"{count} notes of {kind} {match}")
        return self.all(kind, **match)

    def open_gate(self, name: str) -> None:
        """Release the requests that wait at this gate."""
        (self._folder / name).touch()
