"""Hooks of mkdocs: pages of the site that are files elsewhere in the repository."""

from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGES = {"benchmarks.md": "benchmarks/README.md", "changes.md": "CHANGELOG.md"}


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Return the file that is shown in the place of a page."""
    name = PAGES.get(page.file.src_uri)
    return markdown if name is None else (ROOT / name).read_text()
