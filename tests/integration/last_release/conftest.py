"""Fixtures for processes whose release changes."""

from pathlib import Path

import pytest

from last_release.installation import Installation


@pytest.fixture
def installation(tmp_path: Path) -> Installation:
    return Installation(tmp_path / "installed")


@pytest.fixture
def last_release(last_release_python: Path) -> Path:
    """Return the folder of the package of the last release."""
    (package,) = last_release_python.parent.parent.glob("lib/python*/site-packages/asgibus")
    return package
