"""Compile the modules on the path of a request with mypyc, where that is possible. All else is in pyproject.toml.

`ASGIBUS_PURE=1` compiles nothing. `ASGIBUS_COMPILED=1` has an installation fail that would not be compiled. With
neither, asgibus is pure Python where there is no compiler, or where it fails.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
import sysconfig
from pathlib import Path
from typing import Any

from setuptools import setup
from setuptools.command.build_ext import build_ext

COMPILED = """
    layers/{codec,frames,leases,names,offers}
    layers/redis/{bus,client,codec,groups,keys,pipeline,redelivery,store,work_queue}
    layers/redis/local/{inbox}
    layers/redis/ordinary/{acking_consumer,blocking,reader}
    protocol/{channels,checks,connect_request,event_stream,events,header_lines,retry,router,shares,states,stream}
    interface_server/{open_sockets,proxy_headers,read_scheduler,server_context,slow_client}
    interface_server/connections/{connection,groups,takeovers,pending,registry}
    interface_server/http/{event_stream,protocol,request,response,states}
    interface_server/websocket/{frames,handshake,protocol,reader,states}
    worker/{claim_limit,endings,fair_claims,outbox,session,session_registry,worker}
"""
"""The modules on the path of a request, a WebSocket message and a broadcast. All others stay interpreted."""


def flag(variable: str) -> bool:
    """Return whether an environment variable is set, to something other than 0."""
    return os.environ.get(variable, "0") not in ("", "0")


def obstacle() -> str:
    """Return why nothing can be compiled here; empty if nothing is known."""
    if flag("ASGIBUS_PURE"):
        return "ASGIBUS_PURE is set"
    if platform.python_implementation() != "CPython" or sysconfig.get_config_var("Py_GIL_DISABLED"):
        return "mypyc needs CPython with its global lock"
    compiler = (os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc").split()[0]
    if shutil.which(compiler) is None:
        return f"the C compiler {compiler} is missing"
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        return "the headers of Python are missing (python3-dev)"
    return ""


def modules() -> list[str]:
    """Return the paths of the modules to compile."""
    paths = []
    for line in COMPILED.split():
        folder, _, names = line.rstrip("}").partition("{")
        paths += [f"src/asgibus/{folder}{name}.py" for name in names.split(",")]
    return paths


def translate() -> list[Any]:
    """Translate the modules to C, and return them as extensions."""
    from mypyc.build import mypycify  # noqa: PLC0415 # setuptools installs it where something is compiled

    # mypyc needs no other settings. `scripts/check` has checked the types.
    options = ["--config-file=", "--ignore-missing-imports", "--follow-imports=silent"]
    extensions: list[Any] = mypycify([*options, *modules()], group_name="asgibus", opt_level="2", multi_file=True)
    for extension in extensions:
        extension.extra_compile_args.append("-Wno-error")  # what a newer compiler warns of is no reason to be slow
    return extensions


class Compile(build_ext):
    """Compile the extensions into the folder of the build, never beside the sources."""

    def run(self) -> None:
        if self.inplace:  # a library hides the source beside it, also after the source was edited
            sys.exit("asgibus is not compiled in place: use `pip install .`")
        super().run()
        # The folder may have modules of an earlier build, which are compiled no more, or were renamed.
        built, suffix = Path(self.build_lib), sysconfig.get_config_var("EXT_SUFFIX")
        made = {Path(self.get_ext_fullpath(extension.name)).resolve() for extension in self.extensions}
        for path in [*built.rglob(f"*{suffix}"), *built.rglob("*.py")]:
            if path.resolve() not in made and not Path("src", path.relative_to(built)).exists():
                path.unlink()


why = obstacle() or ("an editable installation is always pure Python" if "editable_wheel" in sys.argv else "")
if why and flag("ASGIBUS_COMPILED"):
    sys.exit(f"asgibus cannot be compiled, as ASGIBUS_COMPILED demands: {why}")
compiles = not why and not {"bdist_wheel", "build", "build_ext", "install"}.isdisjoint(sys.argv)
try:
    setup(
        setup_requires=[] if why else ["mypy>=1.18"],
        cmdclass={"build_ext": Compile},
        ext_modules=translate() if compiles else [],
    )
except (Exception, SystemExit) as error:  # mypycify and setuptools end the process when they find an error
    if not compiles or flag("ASGIBUS_COMPILED"):
        raise
    sys.stderr.write(f"asgibus could not be compiled, and is installed as pure Python: {error!r}\n")
    setup()
