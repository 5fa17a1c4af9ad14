"""Run a module as `python -m` does, with shorter leases: `python -m support.launcher asgibus.cli.worker main:app`."""

import runpy
import sys

from support.lease_times import shorten

if __name__ == "__main__":
    shorten()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
