import time
from urllib.parse import parse_qsl

import pytest

from asgibus.layers.settings import LONGEST_SECONDS
from asgibus.protocol.stream_names import require_key, sign_name, why_refused
from asgibus.streams import sign

KEY, OTHER = b"k" * 32, b"o" * 32
EXPIRED = "The signature of this stream has expired."
WRONG = "The signature of this stream is missing or wrong."


def refused(signed: str, *keys: bytes, name: str = "", now: float = 1000.0) -> str | None:
    path, _, query = signed.partition("?")
    return why_refused(name or path, dict(parse_qsl(query)), keys, now)


def test_a_signed_name_is_valid_until_it_expires() -> None:
    signed = sign_name("answer.7", KEY, 1000)
    assert signed.startswith("answer.7?expires=1000&signature=")
    assert refused(signed, KEY) is None
    assert refused(signed, KEY, now=1000.1) == EXPIRED


def test_a_signature_is_one_of_a_name_a_time_and_a_key() -> None:
    signed = sign_name("answer.7", KEY, 1000)
    assert refused(signed, KEY, name="answer.8") == WRONG
    assert refused(signed.replace("1000", "2000"), KEY) == WRONG
    assert refused(signed, OTHER) == WRONG
    assert refused(signed[:-1], KEY) == WRONG
    assert refused(signed + "é", KEY) == WRONG
    assert refused("answer.7", KEY) == WRONG
    assert refused("answer.7?expires=1000", KEY) == WRONG


def test_any_of_several_keys_may_have_signed() -> None:
    assert refused(sign_name("answer.7", OTHER, 1000), KEY, OTHER) is None
    assert refused(sign_name("answer.7", KEY, 1000), KEY, OTHER) is None


def test_whoever_has_a_wrong_signature_does_not_learn_that_it_has_expired() -> None:
    assert refused(sign_name("answer.7", OTHER, 1000), KEY, now=2000.0) == WRONG


@pytest.mark.parametrize("name", ["", "a/b", "a b", "é", "n" * 101])
def test_other_names_cannot_be_signed(name: str) -> None:
    with pytest.raises(TypeError, match="names are 1 to 100"):
        sign_name(name, KEY, 1000)


def test_a_short_key_is_refused_and_not_shown() -> None:
    with pytest.raises(ValueError, match="has at least 16 bytes, and this one 6") as raised:
        sign_name("answer.7", "secret", 1000)
    assert "secret" not in str(raised.value)
    assert require_key("é" * 8) == b"\xc3\xa9" * 8


def test_apps_sign_for_an_hour_or_another_time() -> None:
    now = time.time()
    assert refused(sign("answer.7", KEY), KEY, now=now + 3590) is None
    assert refused(sign("answer.7", KEY), KEY, now=now + 3610) == EXPIRED
    assert refused(sign("answer.7", KEY, expires=60), KEY, now=now + 70) == EXPIRED
    for expires in (0.1, 1.0):
        assert refused(sign("answer.7", KEY, expires=expires), KEY, now=time.time() + expires / 2) is None
    for seconds in (0, -1, LONGEST_SECONDS + 1, float("nan")):
        with pytest.raises(ValueError, match="seconds above 0"):
            sign("answer.7", KEY, expires=seconds)
