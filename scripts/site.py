"""Hooks of mkdocs: pages from files elsewhere in the repository, pictures, and repairs of the theme."""

import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError

ROOT = Path(__file__).parents[1]
PAGES = {"benchmarks.md": "benchmarks/README.md", "changes.md": "CHANGELOG.md"}
PICTURE = re.compile(r"<p><img alt=\"([^\"]*)\" src=\"[./]*pictures/(\w+)\.svg\" ?/?></p>")

FOREIGN_IN_PAGE = re.compile(
    r"""<(?:script|img|iframe|link(?=[^>]*\srel=["']?[^"'>]*(?:stylesheet|icon|pre)))"""
    r"""[^>]*\s(?:src|href)=["']?(?:https?:)?//"""
)
FOREIGN_IN_STYLE = re.compile(r"""url\(\s*["']?(?:https?:)?//|@import""")


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Return the file that a page stands for."""
    name = PAGES.get(page.file.src_uri)
    return markdown if name is None else (ROOT / name).read_text()


def on_page_content(html: str, **_: Any) -> str:
    """Embed pictures in the page, where they follow its colors, and turn empty headings of tables into cells."""
    html = re.sub(r"<th((?: style=\"[^\"]*\")?)></th>", r"<td\1></td>", html)
    return PICTURE.sub(_picture, html)


def _picture(match: re.Match[str]) -> str:
    text, name = match.groups()
    svg = (ROOT / "docs" / "pictures" / f"{name}.svg").read_text()
    svg = re.sub(r"<style>.*?</style>\n", "", svg, flags=re.DOTALL)  # site.css has the colors of the site
    svg = re.sub(r'role="img" aria-label="[^"]*"', 'aria-hidden="true"', svg, count=1)
    return f'<figure class="picture" tabindex="0" role="img" aria-label="{text}">{svg}</figure>'


def on_post_page(output: str, **_: Any) -> str:
    """Repair the theme for screen readers: a name for the search, and one landmark for all navigation."""
    output = re.sub(r'(<nav class="md-nav" data-md-level="\d") aria-[^>]*', r'\1 role="presentation"', output)
    return output.replace(
        'data-md-component="search" role="dialog"', 'data-md-component="search" role="dialog" aria-label="Search"'
    )


def on_post_build(*, config: Any, **_: Any) -> None:
    """Fail if a page makes the browser load something from another host."""
    for suffix, foreign in ((".html", FOREIGN_IN_PAGE), (".css", FOREIGN_IN_STYLE)):
        for path in Path(config.site_dir).rglob(f"*{suffix}"):
            if match := foreign.search(path.read_text()):
                raise PluginError(f"{path.name} loads something from another host: {match[0]}")
