"""Tell ASGI 3, ASGI 2 and WSGI apps apart, and adapt ASGI 2 and ASGI 3 to each other.

An ASGI 3 app is one callable, `await app(scope, receive, send)`; an ASGI 2 app is a double one,
`await app(scope)(receive, send)`; a WSGI app is `app(environ, start_response)`.
"""

from asgibus.compatibility.callables import double_to_single_callable, single_to_double_callable
from asgibus.compatibility.interfaces import Interface, UnknownInterface, interface_of

__all__ = ["Interface", "UnknownInterface", "double_to_single_callable", "interface_of", "single_to_double_callable"]
