"""Fixtures of the modules that run one app on both layers: the module names the app in `APP`."""

import uuid
from collections.abc import Iterator

import pytest

from support.processes import Process
from support.raw import RawClient
from support.servers import LAYERS, Servers, serving


@pytest.fixture(scope="module", params=LAYERS)
def servers(request: pytest.FixtureRequest) -> Iterator[Servers]:
    """Provide servers of the app, for all tests of the module."""
    with serving(request, request.module.APP, layer=request.param) as servers:
        yield servers


@pytest.fixture
def server(servers: Servers) -> Process:
    return servers.interfaces[0]


@pytest.fixture
def client(server: Process) -> Iterator[RawClient]:
    """Provide a connection to the server."""
    with RawClient(server) as client:
        yield client


@pytest.fixture
def name() -> str:
    """Return the key of this test's notes in the app."""
    return uuid.uuid4().hex
