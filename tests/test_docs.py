import ast
import re
from pathlib import Path

import pytest

from asgibus.commands.reference import reference
from frameworks.matrix import FRAMEWORKS

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def test_the_page_of_options_is_made_from_the_commands_as_they_are() -> None:
    assert (ROOT / "docs" / "options.md").read_text() == reference()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_each_framework_has_a_page_with_its_commands_and_code_that_is_python(framework: str) -> None:
    text = (ROOT / "docs" / "frameworks" / f"{framework}.md").read_text()
    assert "\n    asgi-interface --layer redis://" in text
    assert "\n    asgi-worker myproject." in text
    assert "## What differs from uvicorn" in text
    for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        compile(code, framework, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT | ast.PyCF_ONLY_AST)
