"""Detection of the interface of an app from its signature."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from asgiref.wsgi import WsgiToAsgi
from channels.generic.websocket import AsyncWebsocketConsumer
from channels.routing import ProtocolTypeRouter
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from fastapi import FastAPI
from flask import Flask
from starlette.applications import Starlette
from starlette.endpoints import HTTPEndpoint

from asgibus.compatibility import (
    UnknownInterface,
    double_to_single_callable,
    interface_of,
    single_to_double_callable,
)


async def asgi3(scope: Any, receive: Any, send: Any) -> None: ...


def asgi2(scope: Any) -> Any: ...


def wsgi(environ: Any, start_response: Any) -> Any: ...


def passing(app: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(app)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return app(*args, **kwargs)

    return wrapper


def posing(app: Callable[..., Any]) -> Callable[..., Any]:
    """Return an adapter from ASGI 3 with the name, docstring and `__wrapped__` of the adapted app."""

    @functools.wraps(app)
    async def wrapper(scope: Any, receive: Any, send: Any) -> None: ...

    return wrapper


class Passing:
    """A decorator that is a class."""

    def __init__(self, app: Callable[..., Any]) -> None:
        functools.update_wrapper(self, app)

    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...


class Instance3:
    async def __call__(self, scope: Any, receive: Any, send: Any) -> None: ...

    async def method(self, scope: Any, receive: Any, send: Any) -> None: ...

    @classmethod
    async def of_class(cls, scope: Any, receive: Any, send: Any) -> None: ...

    @staticmethod
    async def static(scope: Any, receive: Any, send: Any) -> None: ...


class Decorated3:
    @passing
    async def __call__(self, scope: Any, receive: Any, send: Any) -> None: ...

    @passing
    async def method(self, scope: Any, receive: Any, send: Any) -> None: ...


class Slotted:
    """A class that chooses its interface at construction, as the middleware of error trackers does."""

    __slots__ = ("__call__",)

    def __init__(self, call: Callable[..., Any]) -> None:
        self.__call__ = call


class Anything3:
    async def __call__(self, *args: Any, **kwargs: Any) -> None: ...


class Awaited3:
    def __init__(self, scope: Any, receive: Any, send: Any) -> None: ...

    def __await__(self) -> Iterator[None]:
        yield


class Consumer2:
    def __init__(self, scope: Any, option: int = 0) -> None: ...

    async def __call__(self, receive: Any, send: Any) -> None: ...


class Router2:
    def __call__(self, scope: Any) -> Any: ...


class Iterated:
    """The class example of PEP 3333."""

    def __init__(self, environ: Any, start_response: Any) -> None: ...

    def __iter__(self) -> Iterator[bytes]:
        yield b""


class InstanceWSGI:
    def __call__(self, environ: Any, start_response: Any) -> Any: ...


async def asgi3_with_option(option: int, scope: Any, receive: Any, send: Any) -> None: ...


def wsgi_with_option(environ: Any, start_response: Any, debug: bool = False) -> Any: ...


def dual(scope: Any, receive: Any = None, send: Any = None) -> Any: ...


def scope_and_options(scope: Any, option: int = 0) -> Any: ...


def many(*arguments: Any) -> Any: ...


@pytest.mark.parametrize(
    ("app", "interface"),
    [
        (asgi3, "asgi3"),
        (lambda scope, receive, send: asgi3({**scope}, receive, send), "asgi3"),
        (lambda s, r, w: asgi3({**s}, r, w), "asgi3"),
        (functools.partial(asgi3_with_option, 1), "asgi3"),
        (functools.partial(asgi3_with_option, option=1), None),  # the rest of the arguments must follow by name
        (functools.partial(passing(asgi3_with_option), 1), "asgi3"),
        (functools.partial(functools.partial(passing(asgi3_with_option)), 1), "asgi3"),
        (passing(asgi3), "asgi3"),
        (passing(passing(asgi3)), "asgi3"),
        (Passing(asgi3), "asgi3"),
        (Passing(passing(asgi3)), "asgi3"),
        (Instance3(), "asgi3"),
        (Instance3().__call__, "asgi3"),
        (Instance3().method, "asgi3"),
        (Instance3.of_class, "asgi3"),
        (Instance3.static, "asgi3"),
        (Decorated3(), "asgi3"),
        (Decorated3().method, "asgi3"),
        (Slotted(asgi3), "asgi3"),
        (passing(Instance3()), "asgi3"),
        (Anything3(), "asgi3"),
        (Awaited3, "asgi3"),
        (functools.partial(Awaited3), "asgi3"),
        (dual, "asgi3"),
        (posing(asgi2), "asgi3"),
        (posing(wsgi), "asgi3"),
        (passing(posing(wsgi)), "asgi3"),
        (double_to_single_callable(asgi2), "asgi3"),
        (asgi2, "asgi2"),
        (lambda scope: Consumer2({**scope}), "asgi2"),
        (lambda s: Consumer2({**s}), "asgi2"),
        (passing(asgi2), "asgi2"),
        (Passing(asgi2), "asgi2"),
        (Router2(), "asgi2"),
        (Slotted(asgi2), "asgi2"),
        (Consumer2, "asgi2"),
        (functools.partial(Consumer2, option=1), "asgi2"),
        (scope_and_options, "asgi2"),
        (single_to_double_callable(asgi3), "asgi2"),
        (wsgi, "wsgi"),
        (lambda environ, start_response: [b""], "wsgi"),
        (lambda e, s: [b""], "wsgi"),
        (functools.partial(wsgi_with_option, debug=True), "wsgi"),
        (wsgi_with_option, "wsgi"),
        (passing(wsgi), "wsgi"),
        (Passing(wsgi), "wsgi"),
        (Slotted(wsgi), "wsgi"),
        (InstanceWSGI(), "wsgi"),
        (Iterated, "wsgi"),
        # Apps of frameworks.
        (Starlette(), "asgi3"),
        (FastAPI(), "asgi3"),
        (HTTPEndpoint, "asgi3"),
        (ASGIHandler.__new__(ASGIHandler), "asgi3"),
        (ProtocolTypeRouter({}), "asgi3"),
        (AsyncWebsocketConsumer.as_asgi(), "asgi3"),
        (WsgiToAsgi(wsgi), "asgi3"),
        (sync_to_async(lambda *args: None), "asgi3"),
        (Flask("app"), "wsgi"),
        (Flask("app").wsgi_app, "wsgi"),
        (WSGIHandler.__new__(WSGIHandler), "wsgi"),
        # Undetectable interfaces.
        (many, None),
        (lambda *args, **kwargs: None, None),
        (lambda: None, None),
        (lambda a, b, c=None: None, None),
        (lambda scope, *rest: None, None),
        (dict, None),
        (print, None),
        (Instance3, None),
        (InstanceWSGI, None),
        (functools.partial(asgi3, 1), None),
    ],
)
def test_an_interface(app: Any, interface: str | None) -> None:
    if interface is None:
        with pytest.raises(UnknownInterface, match="does not show by its arguments"):
            interface_of(app)
    else:
        assert interface_of(app) == interface


def test_an_async_function_with_other_arguments_has_no_interface() -> None:
    async def app(environ: Any, start_response: Any) -> Any: ...

    async def two(scope: Any) -> Any: ...

    for wrong in (app, two, functools.partial(asgi3_with_option, 1, 2)):
        with pytest.raises(UnknownInterface):
            interface_of(wrong)


def test_the_error_shows_the_signature() -> None:
    with pytest.raises(UnknownInterface, match=r"^function many\(\*arguments: .*\).* does not show by its arguments"):
        interface_of(many)
    with pytest.raises(UnknownInterface, match=r"^class Instance3\(\) does not"):
        interface_of(Instance3)


def test_wrappers_without_end() -> None:
    def endless(*args: Any) -> Any: ...

    endless.__wrapped__ = endless  # type: ignore[attr-defined]
    with pytest.raises(UnknownInterface):
        interface_of(endless)
