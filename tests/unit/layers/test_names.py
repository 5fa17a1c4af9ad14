import re

import pytest

from asgibus.layers.names import (
    MAX_NAME_LENGTH,
    new_mailbox,
    require_any_group,
    require_channel,
    require_group,
    split_local,
)

GOOD = ["a", "A-z.0_9", "x" * MAX_NAME_LENGTH, "..", "-"]
BAD = [
    "",
    " ",
    "a b",
    "a\n",
    "\na",
    "a\r",
    "é",
    "\uff21",
    "\u0661",
    "a/b",
    "a:b",
    "x" * (MAX_NAME_LENGTH + 1),
    b"a",
    None,
    5,
]
LOCAL = ["a!b", "a.b!c-1", "a!", "x" * 50 + "!" + "y" * 49]
BAD_LOCAL = ["!", "!a", "a!b!c", "a!!", "a!b\n", "a!\n", "x" * 50 + "!" + "y" * 50]


@pytest.mark.parametrize("name", [*GOOD, *LOCAL])
def test_good_channel_names(name: str) -> None:
    assert require_channel(name) == name


@pytest.mark.parametrize("name", [*BAD, *BAD_LOCAL])
def test_bad_channel_names(name: object) -> None:
    with pytest.raises(TypeError, match=f"(?s)100 ASCII letters.*{re.escape(repr(name)[:20])}"):
        require_channel(name)


def test_a_mailbox_is_not_a_whole_channel() -> None:
    assert require_channel("a!b", whole=True) == "a!b"
    with pytest.raises(TypeError, match="mailbox"):
        require_channel("a!", whole=True)


@pytest.mark.parametrize("name", GOOD)
def test_good_group_names(name: str) -> None:
    assert require_group(name) == name


@pytest.mark.parametrize("name", [*BAD, *LOCAL, *BAD_LOCAL])
def test_bad_group_names(name: object) -> None:
    with pytest.raises(TypeError, match="group names"):
        require_group(name)


def test_the_exclamation_mark_splits_a_local_name() -> None:
    assert split_local("a!b") == ("a!", "b")
    assert split_local("a!") == ("a!", "")
    assert split_local("a") is None


def test_mailbox_names_are_unique() -> None:
    names = {new_mailbox("interface") for _ in range(1000)}
    assert len(names) == 1000
    assert all(require_channel(name).startswith("interface.") and name.endswith("!") for name in names)


@pytest.mark.parametrize("name", ["user:1", "stream:" + "x" * MAX_NAME_LENGTH, "a", "A-z.0_9"])
def test_any_group(name: str) -> None:
    assert require_any_group(name) == name


@pytest.mark.parametrize(
    "name", ["user:", ":1", "User:1", "a:b:c", "a:b\n", "a:b!", "stream:" + "x" * 101, "a/b", b"a:b"]
)
def test_no_group_at_all(name: object) -> None:
    with pytest.raises(TypeError, match="group names are"):
        require_any_group(name)


def test_no_app_can_name_an_internal_group() -> None:
    with pytest.raises(TypeError):
        require_group("user:1")
