"""`site`: each framework's app on each setup of servers. `@pytest.mark.needs(...)` chooses the frameworks.

By default every check runs on the frameworks of `IN_DEPTH`, with separate processes over Redis. The other frameworks,
and one process with the memory layer, have the checks marked `smoke`. `--long` runs every check everywhere, and on
uvicorn too, which shows that the check expects the behaviour of another server.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TypeGuard

import pytest

from frameworks.matrix import FRAMEWORKS, IN_DEPTH, SETUPS, Site, Sites

HERE = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect checks of features that a framework lacks, and mark checks of the long form."""
    selected, deselected = [], []
    for item in items:
        selected.append(item) if _is_for(item) else deselected.append(item)
    if deselected:
        config.hook.pytest_deselected(items=deselected)
        items[:] = selected
    for item in selected:
        if _repeats(item):
            item.add_marker("long")


def _is_check(item: pytest.Item) -> TypeGuard[pytest.Function]:
    # The path comes last: it is slow, and this is asked of every test that there is.
    return hasattr(item, "callspec") and isinstance(item, pytest.Function) and item.path.is_relative_to(HERE)


def _is_for(item: pytest.Item) -> bool:
    if not _is_check(item):
        return True
    needed = {name for mark in item.iter_markers("needs") for name in mark.args}
    framework = item.callspec.params.get("sites")
    return framework is None or needed <= FRAMEWORKS[framework].has | {framework}


def _repeats(item: pytest.Item) -> bool:
    """Return whether the same check of another framework, or on other servers, makes this one needless."""
    if not _is_check(item):
        return False
    framework, setup = (item.callspec.params.get(name) for name in ("sites", "setup"))
    required = any(framework in mark.args for mark in item.iter_markers("needs"))
    if setup == "uvicorn" or (setup == "memory" and framework not in IN_DEPTH):
        return True
    in_depth = framework is None or required or framework in IN_DEPTH
    return not (in_depth and setup != "memory") and item.get_closest_marker("smoke") is None


@pytest.fixture(scope="module", params=FRAMEWORKS)
def sites(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sites]:
    """Provide the servers of one framework, for all checks of a module."""
    framework = FRAMEWORKS[request.param]
    servers = Sites(framework, tmp_path_factory.mktemp(framework.name), lambda: request.getfixturevalue("_real_redis"))
    try:
        yield servers
    finally:
        faults = servers.end()
    assert not faults, "\n".join(faults)


@pytest.fixture(params=[pytest.param(name, marks=[pytest.mark.redis] * (name == "redis")) for name in SETUPS])
def setup(request: pytest.FixtureRequest) -> str:
    """Return the kind of servers: "redis" (separate processes), "memory" (one process) or "uvicorn"."""
    name: str = request.param
    return name


@pytest.fixture
def site(setup: str, sites: Sites) -> Site:
    """Provide the app on one setup of servers."""
    return sites.get(setup)


@pytest.fixture
def mounted(setup: str, sites: Sites) -> Site:
    """Return a site below a root path and in the debug mode of its framework."""
    return sites.get(setup, mounted=True)
