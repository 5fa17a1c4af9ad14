"""The kinds of frames."""

from __future__ import annotations

import pytest

from asgibus.layers import frames
from asgibus.layers.codec import pack, unpack
from asgibus.layers.frames import FrameKind


@pytest.mark.parametrize("kind", FrameKind)
def test_each_kind_has_a_plain_int_of_its_name(kind: FrameKind) -> None:
    plain = getattr(frames, kind.name)
    assert type(plain) is int
    assert plain == kind
    assert unpack(pack((plain,))) == (kind,)
