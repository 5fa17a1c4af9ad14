"""Find out from the signature which interface an app has, without calling the app."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from itertools import islice
from types import BuiltinFunctionType, FunctionType, MethodType, MethodWrapperType
from typing import Any, Literal

Interface = Literal["asgi3", "asgi2", "wsgi"]

_BY_COUNT: dict[int, Interface] = {1: "asgi2", 2: "wsgi", 3: "asgi3"}
_PLAIN = (FunctionType, BuiltinFunctionType, MethodWrapperType, type)  # their `__call__` tells nothing more
MAX_WRAPPERS = 100  # around an app; more are taken for an endless chain

_SIGNATURE_OPTIONS: dict[str, Any] = {"follow_wrapped": False}
if sys.version_info >= (3, 14):
    # Names in annotations that exist only for a type checker are then no error.
    from annotationlib import Format

    _SIGNATURE_OPTIONS["annotation_format"] = Format.FORWARDREF


class UnknownInterface(TypeError):
    """The signature fits none of the interfaces, or several. The text shows the signature."""


def interface_of(app: Callable[..., Any]) -> Interface:
    """Return the interface of an app.

    The callable itself decides. A callable that it wraps (`functools.partial`, `functools.wraps`, the `__call__` of an
    instance) is examined only if the outer one takes any arguments, because an adapter may copy the name and signature
    of the app that it adapts.

    Args:
        app: The app: a function, a class, an instance or a partial.

    Returns:
        `"asgi3"`, `"asgi2"` or `"wsgi"`.

    Raises:
        UnknownInterface: The signature does not tell.
    """
    for each in _callables(app):
        if (interface := _interface_of_callable(each)) is not None:
            return interface
    raise UnknownInterface(f"{_describe(app)} does not show by its arguments whether it is ASGI 3, ASGI 2 or WSGI")


def takes(call: Callable[..., Any], count: int) -> bool:
    """Return whether `call` accepts `count` positional arguments and nothing else."""
    signature = _signature(call)
    if signature is None:
        return False
    try:
        signature.bind(*[None] * count)
    except TypeError:
        return False
    return True


def _callables(app: Any, depth: int = 0) -> Iterator[Any]:
    """Yield the callable, then the callables that it wraps, from the outside to the inside."""
    yield app
    if depth == MAX_WRAPPERS:
        return
    if isinstance(app, functools.partial):
        for inside in islice(_callables(app.func, depth + 1), 1, None):
            yield functools.partial(inside, *app.args, **app.keywords)
        return
    if inspect.ismethod(app):
        if hasattr(app.__func__, "__wrapped__"):
            yield from _callables(MethodType(app.__func__.__wrapped__, app.__self__), depth + 1)
        return
    if not isinstance(app, _PLAIN):
        call = type(app).__call__  # Python looks there, too; some classes have it in a slot
        yield from _callables(call.__get__(app) if hasattr(call, "__get__") else call, depth + 1)
    if (wrapped := getattr(app, "__wrapped__", None)) is not None:
        yield from _callables(wrapped, depth + 1)


def _interface_of_callable(call: Any) -> Interface | None:
    """Return the interface that this callable by itself has, or None if it does not tell."""
    counts = [count for count in _BY_COUNT if takes(call, count)]
    bare = call
    while isinstance(bare, functools.partial):
        bare = bare.func
    if inspect.isclass(bare):
        return _interface_of_class(bare, counts)
    if inspect.iscoroutinefunction(bare) or inspect.iscoroutinefunction(type(bare).__call__):
        return "asgi3" if 3 in counts else None
    if len(counts) == 1:
        return _BY_COUNT[counts[0]]
    return _interface_by_names(call, counts)


def _interface_of_class(cls: type, counts: list[int]) -> Interface | None:
    """Return the interface of a class, which is called to make an instance: the instance must fit, too."""
    if 3 in counts and hasattr(cls, "__await__"):
        return "asgi3"
    if 2 in counts and hasattr(cls, "__iter__"):
        return "wsgi"
    call = next((vars(base)["__call__"] for base in cls.__mro__ if "__call__" in vars(base)), None)
    if 1 in counts and call is not None and takes(call, 3):  # self, receive and send
        return "asgi2"
    return None


def _interface_by_names(call: Any, counts: list[int]) -> Interface | None:
    """Return the interface by the names of the arguments, where their number leaves it open."""
    signature = _signature(call)
    names = [name.lstrip("_") for name in signature.parameters] if signature is not None else []
    if not names:
        return None
    if 3 in counts and {"receive", "send"} <= set(names):
        return "asgi3"
    if 2 in counts and (names[0] in ("environ", "env") or "start_response" in names):
        return "wsgi"
    if 1 in counts and 3 not in counts and names[0] == "scope":
        return "asgi2"
    return None


def _signature(call: Any) -> inspect.Signature | None:
    try:
        return inspect.signature(call, **_SIGNATURE_OPTIONS)
    except (TypeError, ValueError):  # none, as some callables that are written in C
        return None


def _describe(app: Any) -> str:
    """Return a description of the app for an error message."""
    if inspect.iscoroutinefunction(app):
        what = "async function"
    else:
        what = "class" if inspect.isclass(app) else "function" if inspect.isfunction(app) else type(app).__name__
    signature = _signature(app)
    return f"{what} {getattr(app, '__name__', '')}".rstrip() + ("(?)" if signature is None else str(signature))
