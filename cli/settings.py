"""The settings of a process, whichever server runs in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import click

from asgibus.cli.env_file import load_env_file
from asgibus.cli.options import LAST_PORT
from asgibus.interface_server.settings import InterfaceSettings
from asgibus.protocol.settings import Heading, Kind, not_empty, setting
from asgibus.worker.settings import WorkerSettings

LogLevel = Literal["critical", "error", "warning", "info", "debug"]
MOST_PROCESSES = 1000  # more than any machine has cores for


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class ProcessSettings:
    """The start, the log and the supervision of a process. Times in seconds."""

    wait_for_layer: float = setting(
        0.0,
        Heading.BUS,
        "How long to wait at the start for a layer that is unavailable; 0 ends with an error at once.",
        zero=True,
    )

    log_level: LogLevel = setting("info", Heading.LOGGING, "Lowest level that is logged.")
    log_config: str | None = setting(
        None,
        Heading.LOGGING,
        "Configure logging from a .json or .yaml file (dictConfig), or from any other (fileConfig).",
        kind=Kind.FILE,
        shown_default="none",
    )

    # Its variables may be options, too.
    env_file: str | None = setting(
        None,
        Heading.APPLICATION,
        "Add the variables of this file to the environment, before anything else.",
        kind=Kind.FILE,
        shown_default="none",
        parse=load_env_file,
        eager=True,
    )

    check: bool = setting(
        False,
        Heading.PROCESSES,
        "Check the options and load APP, then exit, with 0 if both are in order. Nothing is served.",
    )
    processes: int = setting(
        1, Heading.PROCESSES, "Number of processes; one that dies is replaced.", most=MOST_PROCESSES
    )
    admin_host: str = setting(
        "127.0.0.1", Heading.PROCESSES, "Address of the admin port.", metavar="HOST", parse=not_empty
    )
    admin_port: int | None = setting(
        None,
        Heading.PROCESSES,
        "Serve /healthz, /readyz and /metrics on this port; 0 takes a free one. With several processes, each has the "
        "next port.",
        kind=Kind.PORT,
        shown_default="none",
    )

    reload: bool = setting(False, Heading.DEVELOPMENT, "Replace the process when a file of the app changes.")
    reload_dirs: tuple[str, ...] = setting(
        (), Heading.DEVELOPMENT, "Watch this folder. Repeatable.", kind=Kind.FOLDER, shown_default=". and --app-dir"
    )
    reload_includes: tuple[str, ...] = setting(
        (),
        Heading.DEVELOPMENT,
        "Watch these files too, by name or path. Repeatable.",
        metavar="GLOB",
        shown_default="*.py",
    )
    reload_excludes: tuple[str, ...] = setting(
        (), Heading.DEVELOPMENT, "Leave these files out, by name or path. Repeatable.", metavar="GLOB"
    )


ALL_SETTINGS = (InterfaceSettings, WorkerSettings, ProcessSettings)


def check_processes(process: ProcessSettings, layer: str) -> None:
    """Raise click.UsageError for several processes where there can be only one."""
    processes, port = process.processes, process.admin_port
    if processes > 1 and layer.startswith("memory:"):
        raise click.UsageError("memory:// lives within one process: with --processes use a Redis URL as --layer")
    if port and port + processes - 1 > LAST_PORT:
        raise click.UsageError(f"--admin-port {port} leaves no ports for {processes} processes")
