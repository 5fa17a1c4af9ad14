"""The programs on the pages of the frameworks, as they are printed there."""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from asgibus.testing import Bus
from asgibus.worker.application import application_of
from asgibus.worker.settings import WorkerSettings

PAGES = Path(__file__).parents[2] / "docs" / "frameworks"

pytestmark = pytest.mark.anyio


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """The app of the first program on a page, loaded as a worker would."""

    def load(page: str) -> Any:
        code = re.search(r"## Groups.*?```python\n(.*?)```", (PAGES / f"{page}.md").read_text(), re.DOTALL)
        assert code is not None
        module = f"page_of_{page}"
        (tmp_path / f"{module}.py").write_text(code[1])
        monkeypatch.setattr("sys.path", [str(tmp_path), *sys.path])
        app, _ = application_of(WorkerSettings(app=f"{module}:app"))
        return app

    return load


@pytest.mark.parametrize("page", ["starlette", "fastapi", "litestar", "quart", "asgi2"])
async def test_what_one_says_and_what_is_published_reaches_everybody(page: str, program: Callable[[str], Any]) -> None:
    async with Bus(program(page)) as bus, bus.websocket("/everybody") as ann, bus.websocket("/everybody") as bob:
        await ann.send("ann is in")
        assert await ann.receive() == "ann is in"
        await bob.send("hello")
        while (heard := await bob.receive()) != "hello":
            assert heard == "ann is in"
        assert await ann.receive() == "hello"
        if page != "asgi2":
            answer = await bus.http.post("/publish", content="news")
            assert answer.is_success
            assert "published" in answer.text
            assert await ann.receive() == await bob.receive() == "news"
