"""Sizes a model can make: refused with the nearest ones, never rounded."""

from __future__ import annotations

import pytest

from calotype.errors import Invalid
from calotype.sizes import Sizes

SMALL = Sizes.of({"default_width": 64, "default_height": 64, "size_multiple": 8, "min_size": 32, "max_size": 128})


@pytest.mark.parametrize("side", [32, 64, 120, 128])
def test_a_size_the_model_can_do_passes(side: int) -> None:
    SMALL.check(side, ("input", "width"))


@pytest.mark.parametrize(
    ("side", "near"), [(8, [32]), (31, [32]), (65, [64, 72]), (127, [120, 128]), (129, [128]), (4096, [128])]
)
def test_a_size_it_cannot_do_is_refused_with_the_nearest(side: int, near: list[int]) -> None:
    with pytest.raises(Invalid) as caught:
        SMALL.check(side, ("input", "width"))
    assert caught.value.code == "unsupported_size"
    (error,) = caught.value.errors
    assert error.loc == ("input", "width")
    assert error.msg.endswith(f"nearest: {' or '.join(map(str, near))}")
