"""Hooks of mkdocs: pages that are files elsewhere in the repository, and what its theme leaves out."""

import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError

ROOT = Path(__file__).parents[1]
PAGES = {"benchmarks.md": "benchmarks/README.md", "changes.md": "CHANGELOG.md"}

FOREIGN_IN_PAGE = re.compile(
    r"""<(?:script|img|iframe|link(?=[^>]*stylesheet|[^>]*icon|[^>]*pre))[^>]*\s(?:src|href)=["']?(?:https?:)?//"""
)
FOREIGN_IN_STYLE = re.compile(r"""url\(\s*["']?(?:https?:)?//|@import""")


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Return the file that is shown in the place of a page."""
    name = PAGES.get(page.file.src_uri)
    return markdown if name is None else (ROOT / name).read_text()


def on_post_page(output: str, **_: Any) -> str:
    """Name the dialog of the search for screen readers."""
    return output.replace(
        'data-md-component="search" role="dialog"', 'data-md-component="search" role="dialog" aria-label="Search"'
    )


def on_post_build(*, config: Any, **_: Any) -> None:
    """Fail if a page makes the browser load something from another host."""
    for suffix, foreign in ((".html", FOREIGN_IN_PAGE), (".css", FOREIGN_IN_STYLE)):
        for path in Path(config.site_dir).rglob(f"*{suffix}"):
            if match := foreign.search(path.read_text()):
                raise PluginError(f"{path.name} loads something from another host: {match[0]}")
