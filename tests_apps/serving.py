"""An app that is being served."""

from dataclasses import dataclass

from support.processes import Process


@dataclass(frozen=True)
class Site:
    """An app that is being served."""

    server: Process
    """The server that the clients connect to."""
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
        """Return the lines in the file `notes`, to which all processes of the app append."""
        path = self.server.log_path.parent / "notes"
        return path.read_text().splitlines() if path.exists() else []
