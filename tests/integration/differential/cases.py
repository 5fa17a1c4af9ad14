"""The requests of the differential test, by name: well-formed, odd and hostile."""

HOST = "Host: test"


def request(
    method: str = "GET", target: str = "/", version: str = "HTTP/1.1", *headers: str, body: bytes = b""
) -> bytes:
    lines = [f"{method} {target} {version}", *headers]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def _methods() -> dict[str, bytes]:
    known = (
        "GET",
        "HEAD",
        "POST",
        "PUT",
        "PATCH",
        "DELETE",
        "OPTIONS",
        "TRACE",
        "PROPFIND",
        "REPORT",
        "SEARCH",
        "QUERY",
    )
    other = ("CONNECT", "BREW", "get", "Get", "PRI", "SOURCE", "SETUP", "G@T", "GET\t")
    return {f"method {method!r}": request(method, "/", "HTTP/1.1", HOST) for method in (*known, *other)}


TARGETS = (
    *("/", "/?", "/a", "/a/", "//", "//a", "/a//b", "/./a/../b", "/a?b=c", "/a?b?c", "/?a=b&a=c;d", "/a;b=c"),
    *("/%41", "/%2f", "/%2F..%2f", "/%", "/%zz", "/%ff", "/%C3%BC", "/%c3", "/%00", "/%0d%0a", "/%25%32%35", "/+a"),
    *(
        "/a#b",
        "/a?b#c",
        "/a#b?c",
        "/#",
        "/:@!$&'()*+,;=-._~",
        '/"<>\\^`{|}',
        "/a?/b?c",
        "/[a]",
        "/é",
        "/?é",
        "/" + "a" * 3000,
    ),
    *("*", "*a", "a", "a/b", "?a", "test:80", "http://test/", "http://test", "http://test?a", "http://test/a%20b?c#d"),
    *(
        "http://other/",
        "http://me:pw@test/",
        "http:///a",
        "http:/a",
        "HTTP://TEST/A",
        "https://test/",
        "ftp://test/",
        "x://y/z",
    ),
    *("/a b", "/a\tb", "/\x01", "/\x7f", "/\x00", " /", "/ "),
)


def _targets() -> dict[str, bytes]:
    cases = {f"target {target[:40]!r}": request("GET", target, "HTTP/1.1", HOST) for target in TARGETS}
    options = {
        f"OPTIONS {target!r}": request("OPTIONS", target, "HTTP/1.1", HOST) for target in ("*", "/", "http://test")
    }
    return cases | options


def _versions() -> dict[str, bytes]:
    versions = (
        *(
            "HTTP/1.1",
            "HTTP/1.0",
            "HTTP/0.9",
            "HTTP/1.2",
            "HTTP/2.0",
            "HTTP/3.0",
            "HTTP/11",
            "HTTP/1",
            "HTTP/1.10",
            "HTTP/01.1",
        ),
        *("http/1.1", "HTTP/1.1 ", "HTTP /1.1", "RTSP/1.0", "ICE/1.0", "", "XTTP/1.1", "HTTP/1,1"),
    )
    cases = {}
    for version in versions:
        cases[f"version {version!r}"] = request("GET", "/", version, HOST)
        cases[f"version {version!r}, keep-alive"] = request("GET", "/", version, HOST, "Connection: keep-alive")
        cases[f"version {version!r}, close"] = request("GET", "/", version, HOST, "Connection: close")
    return cases


HEADERS = {
    "none": (),
    "no host, another": ("A: b",),
    "empty host": ("Host:",),
    "host with port": ("Host: test:80",),
    "IPv6 host": ("Host: [::1]:80",),
    "two hosts": ("Host: a", "Host: b"),
    "two equal hosts": ("Host: a", "Host: a"),
    "host with a path": ("Host: a/b",),
    "host with a user": ("Host: me@a",),
    "host with a space": ("Host: a b",),
    "host not ASCII": ("Host: \xfc",),
    "space before the value": (HOST, "A:   b"),
    "no space before the value": (HOST, "A:b"),
    "space behind the value": (HOST, "A: b  "),
    "tab behind the value": (HOST, "A: b\t"),
    "only spaces": (HOST, "A:    "),
    "empty": (HOST, "A:"),
    "twice": (HOST, "A: 1", "a: 2"),
    "cookies": (HOST, "Cookie: a=b", "Cookie: c=d"),
    "colon in the value": (HOST, "A: b:c"),
    "quoted": (HOST, 'A: "b, c"'),
    "latin": (HOST, "A: gr\xfc\xdfe"),
    "every allowed byte in a name": (HOST, "!#$%&'*+-.^_`|~09azAZ: b"),
    "underscore in a name": (HOST, "Content_Length: 3"),
    "space before the colon": (HOST, "A : b"),
    "space in the name": (HOST, "A b: c"),
    "no name": (HOST, ": b"),
    "no colon": (HOST, "abc"),
    "name not ASCII": (HOST, "\xfc: b"),
    "name in brackets": (HOST, "[a]: b"),
    "folded": (HOST, "A: b", " c"),
    "first line folded": (" A: b", HOST),
    "LF inside": (HOST, "A: b\nC: d"),
    "CR inside": (HOST, "A: b\rC: d"),
    "NUL inside": (HOST, "A: b\x00c"),
    "escape inside": (HOST, "A: b\x1bc"),
    "DEL inside": (HOST, "A: b\x7fc"),
    "many": (HOST, *[f"A-{number}: {number}" for number in range(200)]),
    "long": (HOST, "A: " + "b" * 20_000),
    "too long": (HOST, "A: " + "b" * 70_000),
    "connection unknown": (HOST, "Connection: x-one"),
    "connection Close": (HOST, "Connection: Close"),
    "connection list": (HOST, "Connection: x-one, close"),
    "connection close, keep-alive": (HOST, "Connection: close, keep-alive"),
    "connection twice": (HOST, "Connection: keep-alive", "Connection: close"),
    "upgrade h2c": (HOST, "Connection: Upgrade", "Upgrade: h2c"),
    "upgrade without connection": (HOST, "Upgrade: h2c"),
    "upgrade and close": (HOST, "Connection: Upgrade, close", "Upgrade: h2c"),
    "te": (HOST, "TE: trailers"),
    "accept": (HOST, "Accept: */*", "Accept-Encoding: gzip, br", "User-Agent: curl/8", "Referer: http://a/b"),
    "range": (HOST, "Range: bytes=0-5", 'If-None-Match: "x"'),
    "authorization": (HOST, "Authorization: Basic YTpi"),
    "forwarded": (HOST, "X-Forwarded-Proto: https", "X-Forwarded-For: 203.0.113.7"),
    "forwarded nonsense": (HOST, "X-Forwarded-Proto: gopher", "X-Forwarded-For: "),
    "forwarded list": (HOST, "X-Forwarded-Proto: http, https"),
    "expect": (HOST, "Expect: 100-continue"),
    "expect miracles": (HOST, "Expect: miracles"),
}


def _headers() -> dict[str, bytes]:
    cases = {}
    for name, lines in HEADERS.items():
        cases[f"headers {name}"] = request("GET", "/", "HTTP/1.1", *lines)
        cases[f"headers {name}, 1.0"] = request("GET", "/", "HTTP/1.0", *lines)
    return cases


BODIES = {
    "length": (("Content-Length: 3",), b"abc"),
    "length 0": (("Content-Length: 0",), b""),
    "length 0003": (("Content-Length: 0003",), b"abc"),
    "length with space": (("Content-Length: 3 ",), b"abc"),
    "length with tab": (("Content-Length:\t3",), b"abc"),
    "length +3": (("Content-Length: +3",), b"abc"),
    "length -3": (("Content-Length: -3",), b"abc"),
    "length 0x3": (("Content-Length: 0x3",), b"abc"),
    "length 3.0": (("Content-Length: 3.0",), b"abc"),
    "length list": (("Content-Length: 3, 3",), b"abc"),
    "length empty": (("Content-Length:",), b""),
    "length huge": (("Content-Length: 99999999999999999999",), b"abc"),
    "two equal lengths": (("Content-Length: 3", "Content-Length: 3"), b"abc"),
    "two lengths": (("Content-Length: 3", "Content-Length: 4"), b"abcd"),
    "large": (("Content-Length: 300000",), b"x" * 300_000),
    "chunked": (("Transfer-Encoding: chunked",), b"3\r\nabc\r\n0\r\n\r\n"),
    "Chunked": (("Transfer-Encoding: Chunked",), b"3\r\nabc\r\n0\r\n\r\n"),
    "chunked with space": (("Transfer-Encoding: chunked ",), b"3\r\nabc\r\n0\r\n\r\n"),
    "chunked empty": (("Transfer-Encoding: chunked",), b"0\r\n\r\n"),
    "chunked in many": (("Transfer-Encoding: chunked",), b"1\r\na\r\n" * 500 + b"0\r\n\r\n"),
    "chunked large": (("Transfer-Encoding: chunked",), b"30D40\r\n" + b"x" * 200_000 + b"\r\n0\r\n\r\n"),
    "chunk extension": (("Transfer-Encoding: chunked",), b'3;a=b;c="d e"\r\nabc\r\n0;z\r\n\r\n'),
    "chunk extension with NUL": (("Transfer-Encoding: chunked",), b"3;\x00\r\nabc\r\n0\r\n\r\n"),
    "trailers": (("Transfer-Encoding: chunked",), b"3\r\nabc\r\n0\r\nX-Sum: 1\r\nHost: other\r\n\r\n"),
    "trailer length": (("Transfer-Encoding: chunked",), b"0\r\nContent-Length: 3\r\n\r\nabc"),
    "chunk 003": (("Transfer-Encoding: chunked",), b"003\r\nabc\r\n00\r\n\r\n"),
    "chunk 0x3": (("Transfer-Encoding: chunked",), b"0x3\r\nabc\r\n0\r\n\r\n"),
    "chunk -3": (("Transfer-Encoding: chunked",), b"-3\r\nabc\r\n0\r\n\r\n"),
    "chunk with space": (("Transfer-Encoding: chunked",), b"3 \r\nabc\r\n0\r\n\r\n"),
    "chunk no number": (("Transfer-Encoding: chunked",), b"xyz\r\n"),
    "chunk too long": (("Transfer-Encoding: chunked",), b"3\r\nabcd\r\n0\r\n\r\n"),
    "chunk overflow": (("Transfer-Encoding: chunked",), b"fffffffffffffffff\r\nabc\r\n"),
    "chunk bare LF": (("Transfer-Encoding: chunked",), b"3\nabc\n0\n\n"),
    "chunk end LF": (("Transfer-Encoding: chunked",), b"3\r\nabc\n0\r\n\r\n"),
    "length and chunked": (("Content-Length: 3", "Transfer-Encoding: chunked"), b"0\r\n\r\n"),
    "chunked and length": (("Transfer-Encoding: chunked", "Content-Length: 3"), b"0\r\n\r\n"),
    "chunked twice": (("Transfer-Encoding: chunked", "Transfer-Encoding: chunked"), b"0\r\n\r\n"),
    "chunked list": (("Transfer-Encoding: chunked, chunked",), b"0\r\n\r\n"),
    "gzip, chunked": (("Transfer-Encoding: gzip, chunked",), b"0\r\n\r\n"),
    "chunked, gzip": (("Transfer-Encoding: chunked, gzip",), b"0\r\n\r\n"),
    "gzip": (("Transfer-Encoding: gzip",), b""),
    "identity": (("Transfer-Encoding: identity",), b""),
    "xchunked": (("Transfer-Encoding: xchunked",), b"0\r\n\r\n"),
    "chunked folded": (("Transfer-Encoding:", " chunked"), b"0\r\n\r\n"),
    "chunked vertical tab": (("Transfer-Encoding: \x0bchunked",), b"0\r\n\r\n"),
    "chunked space colon": (("Transfer-Encoding : chunked",), b"0\r\n\r\n"),
    "expect, body sent": (("Expect: 100-continue", "Content-Length: 3"), b"abc"),
    "upgrade and length": (("Connection: Upgrade", "Upgrade: h2c", "Content-Length: 3"), b"abc"),
    "upgrade and chunked": (
        ("Connection: Upgrade", "Upgrade: h2c", "Transfer-Encoding: chunked"),
        b"3\r\nabc\r\n0\r\n\r\n",
    ),
    "close": (("Connection: close", "Content-Length: 3"), b"abc"),
    "no length": ((), b""),
}


def _bodies() -> dict[str, bytes]:
    cases = {}
    for name, (lines, body) in BODIES.items():
        for method in ("POST", "GET"):
            cases[f"{method} body {name}"] = request(method, "/", "HTTP/1.1", HOST, *lines, body=body)
        cases[f"POST body {name}, 1.0"] = request("POST", "/", "HTTP/1.0", HOST, *lines, body=body)
    return cases


def _sequences() -> dict[str, bytes]:
    get = request("GET", "/1", "HTTP/1.1", HOST)
    post = request("POST", "/2", "HTTP/1.1", HOST, "Content-Length: 3", body=b"abc")
    chunked = request("POST", "/3", "HTTP/1.1", HOST, "Transfer-Encoding: chunked", body=b"1\r\na\r\n0\r\n\r\n")
    close = request("GET", "/4", "HTTP/1.1", HOST, "Connection: close")
    return {
        "pipeline of two": get + get,
        "pipeline of bodies": get + post + chunked + get,
        "pipeline of twenty": (get + post) * 10,
        "pipeline that closes": get + close,
        "pipeline behind a close": close + get,
        "pipeline with 1.0 last": get + request("GET", "/5", "HTTP/1.0"),
        "pipeline behind 1.0": request("GET", "/5", "HTTP/1.0") + get,
        "pipeline into nonsense": get + b"nonsense\r\n\r\n",
        "pipeline into a bad length": get + request("POST", "/", "HTTP/1.1", HOST, "Content-Length: x"),
        "empty lines before": b"\r\n\r\n" + get,
        "empty lines between": get + b"\r\n" + get,
        "bare LF": get.replace(b"\r\n", b"\n"),
        "bare CR": get.replace(b"\r\n", b"\r"),
        "nonsense": b"nonsense\r\n\r\n",
        "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "NULs": bytes(32),
        "a space first": b" " + get,
        "two spaces": get.replace(b"GET /1", b"GET  /1"),
        "a tab": get.replace(b"GET /1", b"GET\t/1"),
        "CR CR LF": get.replace(b"\r\n", b"\r\r\n"),
    }


CASES = _methods() | _targets() | _versions() | _headers() | _bodies() | _sequences()
