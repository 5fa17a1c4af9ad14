"""Datasette's pages, its API, and its streamed exports."""

import csv
import io
from collections.abc import Callable

import httpx
import pytest
from playwright.sync_api import Page, expect
from serving import Site


@pytest.fixture(scope="module")
def site(serve: Callable[..., Site]) -> Site:
    return serve("datasette_app:app")


def test_the_api(client: httpx.Client) -> None:
    answer = client.get("/cities/cities.json", params={"_shape": "array", "_size": 3})
    assert answer.json() == [{"id": number, "name": f"Città {number}"} for number in range(3)]
    answer = client.get("/cities.json", params={"sql": "select count(*) as n from cities", "_shape": "array"})
    assert answer.json() == [{"n": 5000}]


def test_a_streamed_export(client: httpx.Client) -> None:
    with client.stream("GET", "/cities/cities.csv", params={"_stream": "on"}) as answer:
        assert "content-length" not in answer.headers
        text = "".join(answer.iter_text())
    rows = list(csv.reader(io.StringIO(text)))
    assert rows == [["id", "name"], *([str(number), f"Città {number}"] for number in range(5000))]


def test_the_pages(site: Site, page: Page) -> None:
    page.goto(f"{site.url}/cities/cities")
    expect(page.get_by_text("Città 42", exact=True)).to_be_visible()
    page.get_by_role("link", name="42", exact=True).click()
    expect(page).to_have_url(f"{site.url}/cities/cities/42")
    page.goto(f"{site.url}/cities")
    page.get_by_role("button", name="Run SQL").click()
    expect(page.get_by_text("Città", exact=False).first).to_be_visible()
