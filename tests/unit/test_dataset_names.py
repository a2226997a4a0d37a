"""What a dataset may be called."""

from __future__ import annotations

import pytest

from calotype.datasets import check_name
from calotype.errors import Invalid


@pytest.mark.parametrize("name", ["brand", "brand-2024", "a.b_c", "0", "x" * 64])
def test_a_plain_name_is_taken(name: str) -> None:
    check_name(name)


@pytest.mark.parametrize("name", ["", "Brand", "a/b", "ds_0123", "x" * 65, "a\0b", "brand\n", "-a", "ü"])
def test_a_name_that_could_be_mistaken_is_refused(name: str) -> None:
    with pytest.raises(Invalid) as caught:
        check_name(name)
    assert caught.value.errors[0].loc == ("name",)
    assert "brand-2024" in caught.value.detail
