"""The pages of docs/ agree with the code: options, defaults and counters; and all links work."""

import ast
import inspect
import re
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import get_origin

import pytest

import asgibus
from asgibus import compatibility, layers, testing
from asgibus.cli.options_docs import options_page
from asgibus.cli.version import FORM
from asgibus.interface_server import terminator
from asgibus.interface_server.open_sockets import TOO_MANY
from asgibus.interface_server.settings import InterfaceSettings
from asgibus.protocol.retry import RunEnd
from asgibus.testing import conformance
from asgibus.worker.settings import WorkerSettings

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def test_the_page_of_options_is_current() -> None:
    assert (ROOT / "docs" / "options.md").read_text() == options_page()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_have_targets(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


MODULES = (asgibus, compatibility, terminator, layers, testing, conformance)


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_the_api_reference_has_every_public_class_and_function(module: ModuleType) -> None:
    pages = "".join(page.read_text() for page in (ROOT / "docs" / "reference").glob("*.md"))
    public = [name for name in module.__all__ if callable(getattr(module, name)) and not isalias(getattr(module, name))]
    assert [name for name in public if not re.search(rf"\b{name}\b", pages)] == []
    if FORM != "compiled":  # mypyc drops docstrings
        assert [name for name in public if not inspect.getdoc(getattr(module, name))] == []


def isalias(value: object) -> bool:
    return get_origin(value) is not None


FRAMEWORKS = sorted(page.stem for page in (ROOT / "docs" / "frameworks").glob("*.md") if page.stem != "index")


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_pages_of_frameworks_have_commands_and_valid_code(framework: str) -> None:
    text = (ROOT / "docs" / "frameworks" / f"{framework}.md").read_text()
    assert "\n    asgi-interface --layer redis://" in text
    assert "\n    asgi-worker myproject." in text
    assert "## What differs from uvicorn" in text
    for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        compile(code, framework, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT | ast.PyCF_ONLY_AST)


COUNTED = re.compile(r'_?counts\[\s*"([^"]+)"\s*\] \+=|\.(?:_?count|log_unexpected|_refused)\(\s*"([a-zA-Z ]+)"')


def test_all_counters_are_listed() -> None:
    rooms = ("interface_server", "worker", "protocol", "layers")
    sources = [path for room in rooms for path in (ROOT / room).rglob("*.py")]
    counted = {kind for path in sources for groups in COUNTED.findall(path.read_text()) for kind in groups if kind}
    counted |= {TOO_MANY, *(reason.name.lower().replace("_", " ") for reason in RunEnd)}
    _, _, table = (ROOT / "docs" / "metrics.md").read_text().partition("## What is counted\n")
    listed = [kind for row in table.splitlines() for kind in re.findall(r"`([^`]+)`", row.partition(" | ")[0])]
    listed = listed[listed.index("reconnect") :]  # behind the text above the table
    assert len(counted) > 50
    assert sorted(listed) == sorted(counted)


UNITS = {"": 1, "s": 1, "bytes/s": 1, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3}
VALUE = r"(\d[\d,]*)(?:\s([KMG]iB|s\b|bytes/s))?"
DEFAULTS = {each.name: each.default for kind in (WorkerSettings, InterfaceSettings) for each in fields(kind)}


def number(value: str, unit: str) -> int:
    """Return a quantity on a page, in seconds or bytes."""
    return int(value.replace(",", "")) * UNITS[unit]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_defaults_behind_options_are_current(page: Path) -> None:
    for option, value, unit in re.findall(r"`(?:--)?([a-z][a-z-]+)`\s\(" + VALUE + r"(?:[);]|,?\s)", page.read_text()):
        assert DEFAULTS[option.replace("-", "_")] == number(value, unit), f"{option} ({value} {unit})"


def test_limits_of_clients_are_the_defaults_of_the_options() -> None:
    _, _, table = (ROOT / "docs" / "guarantees.md").read_text().partition("| event | default | result |\n")
    documented = {}
    for row in table.partition("\n\n")[0].splitlines()[1:]:
        cell, default, _ = re.split(r"\s*\|\s*", row.strip("| "))
        options = re.findall(r"`([a-z-]+)`", cell)
        for option, (value, unit) in zip(options, re.findall(VALUE, default), strict=False):
            documented[option] = number(value, unit)
    assert len(documented) > 12
    assert documented == {option: DEFAULTS[option.replace("-", "_")] for option in documented}
