"""`python -m asgibus.worker` is `asgi-worker`."""

from asgibus.cli.worker import main

main()
