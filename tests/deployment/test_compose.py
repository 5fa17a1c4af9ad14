"""The image is built from what it needs: .dockerignore lets through each package."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = sorted(path.name for path in (ROOT / "src" / "asgibus").iterdir() if path.is_symlink())


@pytest.mark.parametrize("package", PACKAGES)
def test_the_image_has_every_package(package: str) -> None:
    assert f"!{package}" in (ROOT / ".dockerignore").read_text().splitlines()
