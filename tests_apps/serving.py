"""An app that is being served."""

from dataclasses import dataclass

from support.processes import Process


@dataclass(frozen=True)
class Site:
    """An app that is being served."""

    server: Process
    """Whom the clients connect to."""
    workers: list[Process]
    """The processes that run the app."""

    @property
    def url(self) -> str:
        return self.server.url

    @property
    def ws_url(self) -> str:
        return self.server.ws_url

    @property
    def notes(self) -> list[str]:
        """The lines that the app has written to the file `notes` in its folder, which all its processes share."""
        path = self.server.log_path.parent / "notes"
        return path.read_text().splitlines() if path.exists() else []
