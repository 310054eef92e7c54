"""Page tokens that no list gave."""

from __future__ import annotations

import pytest
from aemos.v1 import device_pb2
from aemos_core.errors import AemosError
from aemos_core.paging import page_of


@pytest.mark.parametrize("token", ["x", "-1", "1.0", "\u0661", "9223372036854775808", "9" * 19, "1" * 5_000])
def test_a_forged_page_token_is_a_mistake(token: str) -> None:
    """Also one that is a number, but larger than any id: no database takes it."""
    with pytest.raises(AemosError) as refused:
        page_of(device_pb2.ListDevicesRequest(page_token=token))
    assert [error.loc for error in refused.value.errors] == ["pageToken"]


def test_the_greatest_id_is_one() -> None:
    """The page behind it is empty."""
    assert page_of(device_pb2.ListDevicesRequest(page_token=str(2**63 - 1))).after == 2**63 - 1
