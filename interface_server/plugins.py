"""Which terminators there are beside HTTP and WebSocket: our own, and those of other packages."""

from __future__ import annotations

from importlib.metadata import entry_points

from asgibus.interface_server.settings import InterfaceSettings
from asgibus.interface_server.terminator import Factory, Listener
from asgibus.interface_server.udp import UdpListener
from asgibus.protocol.channels import TERMINATORS, require_protocol

OWN: dict[str, Factory] = {"udp": UdpListener.at}


def listeners_of(settings: InterfaceSettings) -> list[Listener]:
    """The listeners that the options ask for; nothing listens yet. Raises ValueError with a sentence."""
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
    if name in OWN:
        return OWN[name]
    installed = {point.name: point for point in entry_points(group=TERMINATORS)}
    if name not in installed:
        known = ", ".join([*OWN, *sorted(installed.keys() - OWN.keys())])
        raise ValueError(f"--terminator: there is no terminator {name!r}; installed: {known}")
    try:
        factory: Factory = installed[name].load()
    except Exception as error:  # another package's module may raise anything while it is imported
        what = f"{type(error).__name__}: {error}"
        raise ValueError(f"--terminator: {name!r} ({installed[name].value}) cannot be loaded: {what}") from error
    return factory
