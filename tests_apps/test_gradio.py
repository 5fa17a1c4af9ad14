"""Gradio with its own client, and in a browser; its queue is in the process, to which a cookie leads."""

from collections.abc import Callable
from pathlib import Path

import pytest
from gradio_client import Client, handle_file
from playwright.sync_api import Page, expect
from serving import Site


@pytest.fixture(scope="module")
def site(serve: Callable[..., Site]) -> Site:
    env = {"GRADIO_ANALYTICS_ENABLED": "False", "no_proxy": "*"}
    return serve("gradio_app:app", affinity=("sticky:place",), env=env)


@pytest.fixture
def gradio(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Client:
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    return Client(site.url, download_files=tmp_path, verbose=False, analytics_enabled=False)


def test_a_call(gradio: Client) -> None:
    assert gradio.predict("Änne", api_name="/greet") == "Hello Änne!"


def test_a_streamed_call(gradio: Client) -> None:
    job = gradio.submit(30, api_name="/count")
    assert job.result(100) == 30
    assert job.outputs() == list(range(1, 31))


def test_files(gradio: Client, tmp_path: Path) -> None:
    data = bytes(range(256)) * 20_000
    path = tmp_path / "data.bin"
    path.write_bytes(data)
    assert Path(gradio.predict(handle_file(path), api_name="/reverse")).read_bytes() == data[::-1]


def test_many_at_once(gradio: Client) -> None:
    jobs = [gradio.submit(str(number), api_name="/greet") for number in range(20)]
    assert [job.result(100) for job in jobs] == [f"Hello {number}!" for number in range(20)]


def test_the_page(site: Site, page: Page) -> None:
    page.route("**/*", lambda route: route.continue_() if route.request.url.startswith(site.url) else route.abort())
    page.goto(site.url)
    page.get_by_label("Name").fill("Ben")
    page.get_by_role("button", name="Greet").click()
    expect(page.get_by_label("Greeting")).to_have_value("Hello Ben!")
