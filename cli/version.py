"""The option `--version` of both commands. It says whether the modules of the hot path are compiled."""

from __future__ import annotations

import platform
from typing import Final

import click

from asgibus.protocol import stream

FORM: Final = "pure Python" if stream.__file__.endswith(".py") else "compiled"
"""The form of the modules that `setup.py` compiles, where it can."""

version_option: Final = click.version_option(
    package_name="asgibus", message=f"%(package)s %(version)s ({FORM}), Python {platform.python_version()}"
)
