"""The framings of examples/answers, read by the clients that they are for: the Vercel AI SDK and AG-UI."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from serving import Site


@pytest.fixture(scope="module")
def site(serve: Callable[..., Site]) -> Site:
    return serve("framings_app:app", workers=1)


def test_the_clients_read_answers(site: Site, node_folder: Callable[[Path], Path]) -> None:
    folder = node_folder(Path(__file__).parent / "framings")
    command = ["node", "read.mjs", site.url]
    finished = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    assert finished.returncode == 0, finished.stderr
    whole = {"id": "answer-1", "text": "All is well. ", "error": ""}
    failed = {"id": "answer-1", "text": "This will fail ", "error": "ValueError"}
    found = json.loads(finished.stdout)
    # The answer is begun anew at its first token, and may have had some more by then.
    assert "This will wait a second. ".startswith(found["anew"].pop("text"))
    assert found == {
        "answer": whole,
        "resumed": whole,
        "failed": failed,
        "anew": {"id": "answer-1", "error": "the answer was begun anew"},
        "newer": {"id": "answer-2", "text": "Begun anew. ", "error": ""},
        "agent": whole,
        "failed_agent": failed,
    }
