"""`python -m asgibus.interface_server` is `asgi-interface`."""

from asgibus.cli.interface import main

main()
