"""Listeners for protocols other than HTTP and WebSocket: UDP, and those of other packages."""

from __future__ import annotations

from asgibus.interface_server.settings import InterfaceSettings
from asgibus.interface_server.terminator import Factory, Listener
from asgibus.interface_server.udp import UdpListener
from asgibus.protocol.channels import TERMINATORS, require_protocol

BUILT_IN: dict[str, Factory] = {"udp": UdpListener.at}


def listeners_of(settings: InterfaceSettings) -> list[Listener]:
    """Make the listeners that the settings name. They do not listen yet.

    Raises:
        ValueError: A name or a value is not valid. The message is one sentence.
    """
    wanted: list[tuple[str, str, str | None]] = [("--udp", "udp", value) for value in settings.udp]
    for text in settings.terminators:
        name, mark, value = text.partition("=")
        wanted.append((f"--terminator {name}", name, value if mark else None))
    return [_listener(option, name, value, settings) for option, name, value in wanted]


def _listener(option: str, name: str, value: str | None, settings: InterfaceSettings) -> Listener:
    factory = _factory(name)
    try:
        listener = factory(value, settings)
        require_protocol(listener.kind)
    except ValueError as error:
        raise ValueError(f"{option}: {error}") from error
    return listener


def _factory(name: str) -> Factory:
    if name in BUILT_IN:
        return BUILT_IN[name]
    from importlib.metadata import entry_points  # noqa: PLC0415  # with its parser of e-mail, it takes 5 ms

    installed = {point.name: point for point in entry_points(group=TERMINATORS)}
    if name not in installed:
        known = ", ".join([*BUILT_IN, *sorted(installed.keys() - BUILT_IN.keys())])
        raise ValueError(f"--terminator: there is no terminator {name!r}; installed: {known}")
    try:
        factory: Factory = installed[name].load()
    except Exception as error:  # the import of another package may raise anything
        what = f"{type(error).__name__}: {error}"
        raise ValueError(f"--terminator: {name!r} ({installed[name].value}) cannot be loaded: {what}") from error
    return factory
