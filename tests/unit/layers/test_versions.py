"""The versions of what goes over the bus, and what two processes that differ say about each other."""

from collections import Counter
from typing import Any

import pytest

from asgibus.layers.redis.codec import EntryCodec
from asgibus.layers.redis.encryption import Encryptor
from asgibus.layers.versions import FORMATS, PAYLOAD, RELEASE, ForeignVersion, Format, disagreement, published

US = "this process"
THEM = "worker.1!"


def other(**versions: tuple[int, int, int]) -> dict[str, Any]:
    """Return what a process of another release has published, with these formats changed."""
    formats = published()["formats"] | {name.replace("_", " "): each for name, each in versions.items()}
    return {"release": "9.9", "formats": formats}


def test_a_process_understands_its_own_release() -> None:
    assert disagreement(THEM, published()) is None


def test_kinds_that_the_other_release_does_not_have_are_ignored() -> None:
    assert disagreement(THEM, other(smoke_signals=(7, 7, 7))) is None
    assert disagreement(THEM, {"release": "9.9", "formats": {}}) is None


@pytest.mark.parametrize("ours", FORMATS)
def test_neighbours_understand_each_other(ours: Format) -> None:
    written, oldest, newest = ours[1:]
    name = ours.name.replace(" ", "_")
    assert disagreement(THEM, other(**{name: (written, oldest, newest + 1)})) is None  # it prepares the next version
    assert disagreement(THEM, other(**{name: (written, written, newest)})) is None  # it has dropped an old one


@pytest.mark.parametrize("ours", FORMATS)
@pytest.mark.parametrize(
    ("change", "to_upgrade"),
    [((1, 1, 1), US), ((1, 0, 1), US), ((0, 1, 1), US), ((-9, -9, -9), THEM), ((0, 0, -1), THEM)],
)
def test_processes_that_do_not_understand_each_other(
    ours: Format, change: tuple[int, int, int], to_upgrade: str
) -> None:
    newest = ours.newest
    written, oldest, latest = (newest + each for each in change)
    why = disagreement(THEM, other(**{ours.name.replace(" ", "_"): (written, oldest, latest)}))
    assert why is not None
    assert f"{THEM} is of asgibus 9.9 and this process of asgibus {RELEASE}" in why
    assert f"{ours.name} have version {written} there and {ours.written} here" in why
    assert f"Upgrade {to_upgrade}," in why


@pytest.mark.parametrize("version", [PAYLOAD.oldest - 1, PAYLOAD.newest + 1, None, "3", True, 3.0])
def test_a_version_that_is_not_read(version: object) -> None:
    assert not PAYLOAD.reads(version)
    error = PAYLOAD.refuse(version, THEM)
    assert isinstance(error, ForeignVersion)
    assert f"payloads have version {version!r}" in str(error)
    assert f"asgibus {RELEASE} reads version {PAYLOAD.oldest}" in str(error)
    to_upgrade = US if isinstance(version, int) and version > PAYLOAD.newest else THEM
    assert f"upgrade {to_upgrade}," in str(error)


def test_a_range_of_versions_is_named() -> None:
    preparing = Format("payloads", written=3, oldest=2, newest=4)
    assert [version for version in range(7) if preparing.reads(version)] == [2, 3, 4]
    assert "reads version 2 to 4" in str(preparing.refuse(5, THEM))


@pytest.mark.parametrize("encryptor", [None, Encryptor(["key"])])
def test_an_entry_whose_form_is_not_known(encryptor: Encryptor | None, caplog: pytest.LogCaptureFixture) -> None:
    counts: Counter[str] = Counter()
    codec = EntryCodec(encryptor, counts)
    with pytest.raises(
        ForeignVersion, match=r"entries have version 3, where .* reads version 1 to 2: upgrade this"
    ) as one:
        codec.unpack("place", b"\xc1\x03" + bytes(100))
    for number in range(3):
        codec.log_rejected("place", str(number), one.value)
    assert counts == {"foreign version": 3}
    assert len(caplog.messages) == 1


@pytest.mark.parametrize("encryptor", [None, Encryptor(["key"])])
@pytest.mark.parametrize("data", [b"\xc1", b"\xc1\x02", b"\xc1\x02ab"])
def test_an_entry_that_is_cut_off_is_damaged(encryptor: Encryptor | None, data: bytes) -> None:
    with pytest.raises(ValueError, match=r".") as raised:
        EntryCodec(encryptor, Counter()).unpack("place", data)
    assert not isinstance(raised.value, ForeignVersion)
