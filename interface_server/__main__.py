"""`python -m asgibus.interface_server` is `asgi-interface`."""

from asgibus.interface_server.cli import main

main()
