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

    def all(self, what: str | None = None, **match: Any) -> list[dict[str, Any]]:
        """Return the notes of the kind `what` whose values equal `match`, oldest first."""
        if not self._path.exists():
            return []
        lines = self._path.read_text().rpartition("\n")[0].splitlines()  # the last one may be being written
        return [
            noted
            for noted in map(json.loads, lines)
            if (what is None or noted["what"] == what)
            and all(noted.get(name) == value for name, value in match.items())
        ]

    def wait(self, what: str, count: int = 1, timeout: float | None = None, **match: Any) -> list[dict[str, Any]]:
        """Wait until `count` notes match, then return all that match, oldest first."""
        wait_until(lambda: len(self.all(what, **match)) >= count, timeout, f"{count} notes of {what} {match}")
        return self.all(what, **match)

    def open_gate(self, name: str) -> None:
        """Release the requests that wait at this gate."""
        (self._folder / name).touch()
