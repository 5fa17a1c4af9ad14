"""URLs of a layer: their settings, and errors without any part that may be a password."""

import re
import traceback
from dataclasses import replace

import pytest

from asgibus.layers import open_layer
from asgibus.layers.redis.config import SCHEMES, Address, read_hosts

SECRET = "s3cr3t"
ESCAPE = "%2F"
"""In the sentence of an error that may come of a password with a character that had to be escaped."""

BAD = [
    # no scheme, or another one
    ("", "begins with one of memory://, redis://"),
    ("memory", "begins with one of"),
    ("redis", "begins with one of"),
    ("redis:/h", "begins with one of"),
    (f"http://:{SECRET}@h", "begins with one of"),
    (f":{SECRET}@h", "begins with one of"),
    (f"sentinel://:{SECRET}@h/bus", "begins with one of"),
    (f"redis://:{SECRET} {SECRET}@h", "%20"),
    (f"redis://:{SECRET} {SECRET}://@h", "%20"),
    # a password that had to be escaped
    (f"redis://:{SECRET}/{SECRET}@h:6379", ESCAPE),
    (f"redis://:{SECRET}?{SECRET}@h:6379", ESCAPE),
    (f"redis://:{SECRET}#{SECRET}@h:6379", ESCAPE),
    (f"redis://user:{SECRET}/{SECRET}@h:6379/0", ESCAPE),
    (f"redis://user:{SECRET}?{SECRET}@h:6379/0", ESCAPE),
    (f"redis://user:{SECRET}#{SECRET}@h:6379/0?db=1", ESCAPE),
    (f"redis://:{SECRET}?a={SECRET}@h:6379", ESCAPE),
    (f"redis://:@{SECRET}/{SECRET}@h", ESCAPE),
    (f"redis://:{SECRET}?db={SECRET}@h", "option db"),
    (f"rediss://:{SECRET}/@h", ESCAPE),
    (f"unix://:{SECRET}/{SECRET}@/run/redis.sock", ESCAPE),
    (f"unix://:{SECRET}?{SECRET}@/run/redis.sock", ESCAPE),
    (f"unix://:{SECRET}#@/run/redis.sock", ESCAPE),
    (f"redis+sentinel://:{SECRET}/{SECRET}@h:1/bus", ESCAPE),
    (f"redis+sentinel://:{SECRET}?{SECRET}@h:1/bus", ESCAPE),
    (f"redis+cluster://:{SECRET}/{SECRET}@h:1", ESCAPE),
    (f"redis+clusters://:{SECRET}?{SECRET}@h:1", ESCAPE),
    (f"redis://:{SECRET}\t@h", "%09|space|begins with"),
    (f"redis://:{SECRET}\x01@h", "control character"),
    # hosts and ports
    ("redis://127.0.0.1:abc", "port .* from 1 to 65535"),
    (f"redis://:{SECRET}@h:port", "port .* from 1 to 65535"),
    (f"redis://:{SECRET}@h:99999", "port .* from 1 to 65535"),
    (f"redis://:{SECRET}@h:0", "port .* from 1 to 65535"),
    (f"redis://:{SECRET}@h:-1", "port .* from 1 to 65535"),
    (f"redis://:{SECRET}@h:1:2", "port .* from 1 to 65535"),
    (f"redis://:{SECRET}@h:\u0661", "port .* from 1 to 65535"),
    (f"redis://:{SECRET}@h:{'1' * 5000}", "port .* from 1 to 65535"),
    (f"redis://:{SECRET}@[::1", "no valid host"),
    (f"redis://:{SECRET}@[::1]6379", "no valid host"),
    (f"redis://:{SECRET}@[h]:1", "no valid host"),
    (f"redis://:{SECRET}@::1", "port .* from 1 to 65535"),
    (f"redis://:{SECRET}@a,b", "several hosts"),
    (f"redis://:{SECRET}@h%", "no valid host"),
    (f"redis://:{SECRET}@a..b", "no valid host"),
    (f"redis://:{SECRET}@{'x' * 70}", "no valid host"),
    # databases
    ("redis://h/database", "database"),
    (f"redis://:{SECRET}@h/-1", "database"),
    (f"redis://:{SECRET}@h/1/2", "database"),
    (f"redis://:{SECRET}@h/{'1' * 5000}", "database"),
    (f"redis://:{SECRET}@h?db=x", "option db"),
    (f"redis://:{SECRET}@h?db=-1", "database"),
    (f"redis://:{SECRET}@h/x?db=1", "database"),
    # sockets
    ("unix://", "names no socket"),
    (f"unix://:{SECRET}@", "names no socket"),
    ("unix://run/redis.sock", "names no socket"),
    ("unix:///run/redis.sock%00", "names no socket"),
    # options
    ("rediss://h?ssl_ca_cert=/a", "perhaps ssl_ca_certs was meant"),
    ("redis://h?user_name=x", "perhaps username was meant"),
    (f"redis://:{SECRET}@h?ssl_ca_certs=/a", "rediss://"),
    ("redis+cluster://h?ssl_cert_reqs=none", r"redis\+clusters://"),
    (f"rediss://:{SECRET}@h?ssl_ca_certs=/no/such/file", "TLS files .* No such file"),
    (f"rediss://:{SECRET}@h?ssl_certfile=/no/such/file", "TLS files .* No such file"),
    ("rediss://h?ssl_ca_data=none", "TLS files"),
    ("rediss://h?ssl_cert_reqs=maybe", "ssl_cert_reqs"),
    ("rediss://h?ssl_min_version=7", "ssl_min_version"),
    ("rediss://h?ssl_min_version=x", "option ssl_min_version"),
    (f"rediss://h?ssl_ciphers={SECRET}", "ssl_ciphers"),
    # Sentinels
    (f"redis+sentinel://:{SECRET}@", "behind Sentinel is written"),
    (f"redis+sentinel://:{SECRET}@h", "behind Sentinel is written"),
    (f"redis+sentinel://:{SECRET}@h:1/", "behind Sentinel is written"),
    (f"redis+sentinel://:{SECRET}@/bus", "behind Sentinel is written"),
    (f"redis+sentinel://:{SECRET}@h,/bus", "behind Sentinel is written"),
    (f"redis+sentinel://:{SECRET}@h:port/bus", "port .* from 1 to 65535"),
    (f"redis+sentinel://:{SECRET}@h:1,i:99999/bus", "port .* from 1 to 65535"),
    (f"redis+sentinel://:{SECRET}@h/bus/database", "database"),
    (f"redis+sentinel://:{SECRET}@h/bus/1/2", "database"),
    (f"redis+sentinel://:{SECRET}@[::1/bus", "no valid host"),
    (f"redis+sentinel://h/bus?password={SECRET}", "no options"),
    (f"redis+sentinel://h/bus/1?ssl_ca_certs={SECRET}", "no options"),
    (f"redis+sentinel://h/bus#{SECRET}", ESCAPE),
    # clusters
    ("redis+cluster://", "on a cluster is written"),
    ("redis+cluster://,h", "on a cluster is written"),
    ("redis+cluster://h/1", "on a cluster is written"),
    ("redis+cluster://h?db=1", "on a cluster is written"),
    ("redis+cluster://h:x", "port .* from 1 to 65535"),
]


@pytest.mark.parametrize(("url", "sentence"), BAD)
def test_the_error_for_a_bad_url_shows_no_part_of_the_url(url: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as raised:
        open_layer(url)
    assert re.fullmatch(r"[^\n]{20,700}", str(raised.value))
    assert SECRET not in "".join(traceback.format_exception(raised.value))


GOOD = [
    ("redis://", Address()),
    ("redis://h", Address("h")),
    ("redis://h/", Address("h")),
    ("redis://h:1/2", Address("h", 1, db=2)),
    ("redis://h:1/2?db=3", Address("h", 1, db=3)),
    ("redis://[::1]:5", Address("::1", 5)),
    ("redis://my_redis-1.example.com.", Address("my_redis-1.example.com.")),
    ("redis://bücher.example", Address("bücher.example")),
    ("redis://:p%40ss%2F%3f%23@h", Address("h", password="p@ss/?#")),
    ("redis://us%3Aer:p:w@h", Address("h", username="us:er", password="p:w")),
    ("redis://:p@ss@h", Address("h", password="p@ss")),
    ("redis://user@h", Address("h", username="user")),
    ("redis://h?username=u&password=p@ss", Address("h", username="u", password="p@ss")),
    ("redis://:p@h?socket_timeout=5&health_check_interval=30&max_connections=7", Address("h", password="p")),
    ("redis://h?decode_responses=True&protocol=3&client_name=me", Address("h")),
    ("unix:///run/redis.sock", Address(path="/run/redis.sock")),
    ("unix:///run/@redis%20x.sock?db=2", Address(path="/run/@redis x.sock", db=2)),
    ("unix://u:p@/run/redis.sock?password=q", Address(path="/run/redis.sock", username="u", password="p")),
    ("redis+sentinel://a,[::1]:5/my-bus/7", Address(sentinels=(("a", 26379), ("::1", 5)), service="my-bus", db=7)),
    ("redis+sentinel://u:p%2F@a:1/bus/", Address(sentinels=(("a", 1),), service="bus", username="u", password="p/")),
    ("redis+cluster://u:p@a,b:1", Address(nodes=(("a", 6379), ("b", 1)), username="u", password="p")),
]


@pytest.mark.parametrize(("url", "address"), GOOD)
def test_valid_urls(url: str, address: Address) -> None:
    assert replace(read_hosts(url)[0], tag="") == address


@pytest.mark.parametrize("url", ["rediss://h", "redis+clusters://h,i"])
@pytest.mark.parametrize("option", ["", "?ssl_cert_reqs=none", "?ssl_check_hostname=false", "?ssl_min_version=772"])
def test_urls_with_tls(url: str, option: str) -> None:
    context = read_hosts(url + option)[0].tls
    assert context is not None
    assert context.check_hostname == (option in ("", "?ssl_min_version=772"))


def test_a_password_is_in_no_representation() -> None:
    for scheme in SCHEMES:
        place = "/run/redis.sock" if scheme == "unix" else "h/bus" if "sentinel" in scheme else "h"
        address = read_hosts(f"{scheme}://{SECRET}:{SECRET}@{place}")[0]
        assert address.password == SECRET
        assert SECRET not in f"{address} {address!r} {address.identity}"
