"""`python -m asgibus.worker` is `asgi-worker`."""

from asgibus.worker.cli import main

main()
