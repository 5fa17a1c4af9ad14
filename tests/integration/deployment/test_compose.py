"""The files of the image and the services of the Compose file."""

import ast
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[3]
LINKS = [path for path in (ROOT / "src" / "asgibus").iterdir() if path.is_symlink()]
PACKAGES = sorted({path.resolve().relative_to(ROOT).parts[0] for path in LINKS})


@pytest.mark.parametrize("package", PACKAGES)
def test_the_image_has_every_package(package: str) -> None:
    assert f"!{package}" in (ROOT / ".dockerignore").read_text().splitlines()


def test_the_worker_has_a_temporary_folder_and_redis_a_limit() -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    worker = services["worker"]
    assert worker["read_only"]
    assert [mount for mount in worker["tmpfs"] if mount.startswith("/tmp:size=")]
    assert "--maxmemory 512mb --maxmemory-policy noeviction" in services["redis"]["command"]
    # Also for an app whose image starts a worker of its own, without options.
    assert f":{worker['environment']['ASGIBUS_ADMIN_PORT']}/readyz" in worker["healthcheck"]["test"][-1]
    for name in ("interface", "worker"):
        assert float(services[name]["environment"]["ASGIBUS_WAIT_FOR_LAYER"]) > 0


@pytest.mark.parametrize("name", ["interface", "worker"])
def test_a_health_check_imports_only_the_standard_library(name: str) -> None:
    service = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"][name]
    *_, program = service["healthcheck"]["test"]
    imported = [node for node in ast.walk(ast.parse(program)) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {node.module if isinstance(node, ast.ImportFrom) else node.names[0].name for node in imported}
    assert {str(name).partition(".")[0] for name in names} <= sys.stdlib_module_names
