"""FastAPI with bodies of 200 MiB in both directions, and the memory that they take."""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from serving import Site

MIB = 1 << 20
SIZE = 200


@pytest.fixture(scope="module")
def site(serve: Callable[..., Site]) -> Site:
    return serve("fastapi_app:app")


def parts() -> Iterator[bytes]:
    return (number.to_bytes(4, "big") * (MIB // 4) for number in range(SIZE))


@pytest.fixture(scope="module")
def digest() -> str:
    digest = hashlib.sha256()
    for part in parts():
        digest.update(part)
    return digest.hexdigest()


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Provide a file of 200 MiB."""
    path = tmp_path_factory.mktemp("large") / "large.bin"
    with path.open("wb") as file:
        file.writelines(parts())
    return path


@pytest.fixture(autouse=True)
def memory(site: Site) -> Iterator[None]:
    """Fail a test in which a process grows by 100 MiB or more."""
    processes = [psutil.Process(process.pid) for process in {site.server, *site.workers}]
    before = [process.memory_info().rss for process in processes]
    yield
    grown = [process.memory_info().rss - rss for process, rss in zip(processes, before, strict=True)]
    assert max(grown) < 100 * MIB, grown


def test_an_upload(client: httpx.Client, large: Path, digest: str) -> None:
    with large.open("rb") as file:
        answer = client.post("/upload", data={"title": "größer"}, files={"file": ("large.bin", file)})
    assert answer.json() == {"title": "größer", "name": "large.bin", "size": SIZE * MIB, "digest": digest}


def test_a_streamed_upload(client: httpx.Client, digest: str) -> None:
    assert client.put("/raw", content=parts()).json() == {"size": SIZE * MIB, "digest": digest}


def test_a_streamed_download(client: httpx.Client, digest: str) -> None:
    received = hashlib.sha256()
    with client.stream("GET", f"/download/{SIZE}") as answer:
        for part in answer.iter_bytes():
            received.update(part)
    assert received.hexdigest() == digest


def test_a_file(client: httpx.Client, large: Path, digest: str) -> None:
    received = hashlib.sha256()
    with client.stream("GET", "/file", params={"path": str(large)}) as answer:
        assert answer.headers["content-length"] == str(SIZE * MIB)
        for part in answer.iter_bytes():
            received.update(part)
    assert received.hexdigest() == digest
    part = client.get("/file", params={"path": str(large)}, headers={"range": f"bytes={5 * MIB}-{6 * MIB - 1}"})
    assert part.status_code == 206
    assert part.content == (5).to_bytes(4, "big") * (MIB // 4)
