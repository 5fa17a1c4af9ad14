"""The connection arguments of redis-py, by which users say where Redis is: in a URL, or in a dict.

Those that say where Redis is and who we are, and those of TLS, are used. What else redis-py has (timeouts, retries,
pools, health checks) is about connections that are made here in another way, and is passed over.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from typing import Any

TLS_ARGUMENTS = (
    *("ssl", "ssl_ca_certs", "ssl_ca_path", "ssl_ca_data", "ssl_cert_reqs", "ssl_certfile", "ssl_keyfile"),
    *("ssl_keyfile_password", "ssl_password", "ssl_check_hostname", "ssl_context", "ssl_min_version", "ssl_ciphers"),
)
PASSED_OVER = (
    *("socket_timeout", "socket_connect_timeout", "socket_keepalive", "socket_keepalive_options", "socket_read_size"),
    *("retry", "retry_on_timeout", "retry_on_error", "health_check_interval", "max_connections", "timeout"),
    *(
        "client_name",
        "lib_name",
        "lib_version",
        "driver_info",
        "protocol",
        "legacy_responses",
        "encoding",
        "encoding_errors",
    ),
    *("decode_responses", "single_connection_client", "auto_close_connection_pool", "connection_class", "parser_class"),
    *("min_other_sentinels", "sentinel_kwargs", "is_master", "check_connection", "connection_pool"),
)
REQUIREMENTS = ("none", "optional", "required", None, *ssl.VerifyMode)


def client_tls(options: Mapping[str, Any]) -> ssl.SSLContext:
    """Return the TLS settings of redis-py's arguments.

    Raises ValueError, in a sentence that holds no secret, for files that cannot be used and for values that are none.
    """
    if options.get("ssl_cert_reqs", "required") not in REQUIREMENTS:
        raise ValueError("the ssl_cert_reqs of the layer's Redis is none of 'required', 'optional' and 'none'")
    try:
        context = ssl.create_default_context(
            cafile=options.get("ssl_ca_certs"), capath=options.get("ssl_ca_path"), cadata=options.get("ssl_ca_data")
        )
        if options.get("ssl_certfile"):
            # Without a password OpenSSL would ask for one at the terminal.
            password = options.get("ssl_keyfile_password") or options.get("ssl_password") or ""
            context.load_cert_chain(options["ssl_certfile"], options.get("ssl_keyfile"), password)
    except (OSError, TypeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise ValueError(f"the TLS files of the layer's Redis cannot be used: {reason}") from None
    try:
        if options.get("ssl_ciphers"):
            context.set_ciphers(options["ssl_ciphers"])
    except (OSError, TypeError):
        raise ValueError("the ssl_ciphers of the layer's Redis are none that OpenSSL knows") from None
    try:
        if options.get("ssl_min_version"):
            context.minimum_version = options["ssl_min_version"]
    except (TypeError, ValueError, OverflowError):
        raise ValueError("the ssl_min_version of the layer's Redis is no ssl.TLSVersion") from None
    if options.get("ssl_check_hostname") is False:
        context.check_hostname = False
    if options.get("ssl_cert_reqs", "required") in ("none", None, ssl.CERT_NONE):
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
