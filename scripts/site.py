"""Hooks of mkdocs: pages that are files elsewhere in the repository, and what its theme leaves out."""

from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGES = {"benchmarks.md": "benchmarks/README.md", "changes.md": "CHANGELOG.md"}


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Return the file that is shown in the place of a page."""
    name = PAGES.get(page.file.src_uri)
    return markdown if name is None else (ROOT / name).read_text()


def on_post_page(output: str, **_: Any) -> str:
    """Name the dialog of the search for screen readers."""
    return output.replace(
        'data-md-component="search" role="dialog"', 'data-md-component="search" role="dialog" aria-label="Search"'
    )
