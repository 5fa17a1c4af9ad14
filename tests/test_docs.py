import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from asgibus.commands.reference import reference

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]

# What a browser loads by itself, at another host.
LOADED = re.compile(
    r"""<(?:script|img|iframe|link(?=[^>]*stylesheet|[^>]*icon|[^>]*pre))[^>]*\s(?:src|href)=["']?(?:https?:)?//"""
)


def test_the_page_of_options_is_made_from_the_commands_as_they_are() -> None:
    assert (ROOT / "docs" / "options.md").read_text() == reference()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_site_is_built_without_a_warning_and_loads_nothing_from_other_hosts(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    env = os.environ | {"NO_MKDOCS_2_WARNING": "1"}

    built = subprocess.run(command, check=False, cwd=ROOT, env=env, capture_output=True, text=True, timeout=50)

    assert built.returncode == 0, built.stderr
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) >= len(PAGES) - 2
    for page in pages:
        assert not LOADED.search(page.read_text()), f"{page.name} loads something from another host"
    for style in tmp_path.rglob("*.css"):
        assert not re.search(r"url\(\s*[\"']?(?:https?:)?//|@import", style.read_text()), (
            f"{style.name} loads something"
        )
