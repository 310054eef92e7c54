"""Bodies in blocks are put together within bounds."""

import pytest
from aemos_core.errors import AemosError, Kind
from aemos_gateway.coap_answers import CoapError
from aemos_gateway.coap_blocks import MOST_TRANSFERS, QUIET_SECONDS, Blocks
from aiocoap.optiontypes import BlockOption

KB = bytes(1024)


Sent = tuple[BlockOption.BlockwiseTuple, bytes, int]


def block(number: int, payload: bytes = KB, *, more: bool = True, exponent: int = 6, size1: int = 0) -> Sent:
    return BlockOption.BlockwiseTuple(number, more, exponent), payload, size1


def test_put_together() -> None:
    """The last block gives the body; the transfer is then forgotten."""
    blocks = Blocks()
    assert blocks.add("a", *block(0, b"x" * 16, exponent=0)) is None
    assert blocks.add("a", *block(1, b"y", more=False, exponent=0)) == b"x" * 16 + b"y"
    with pytest.raises(CoapError):
        blocks.add("a", *block(1, b"y", more=False, exponent=0))


def test_interleaved_transfers_are_independent() -> None:
    """Two senders at the same time get their own bodies."""
    blocks = Blocks()
    for key in ("a", "b"):
        blocks.add(key, *block(0, key.encode() * 16, exponent=0))
    assert blocks.add("a", *block(1, b"", more=False, exponent=0)) == b"a" * 16
    assert blocks.add("b", *block(1, b"", more=False, exponent=0)) == b"b" * 16


@pytest.mark.parametrize("number", [0, 2, 3])
def test_gap_is_408(number: int) -> None:
    """A block that does not follow the last one, or follows none, is 4.08."""
    blocks = Blocks()
    if number:
        blocks.add("a", *block(0))
    with pytest.raises(CoapError) as caught:
        blocks.add("a", *block(number or 1))
    assert caught.value.code == 4 * 32 + 8


def test_block_0_begins_anew() -> None:
    """A client that starts over gets the second body."""
    blocks = Blocks()
    blocks.add("a", *block(0))
    assert blocks.add("a", *block(0, b"new", more=False)) == b"new"


@pytest.mark.parametrize("first", [block(0, size1=65_537), block(64), block(1 << 20, b"", more=False)])
def test_too_large_at_once(first: Sent) -> None:
    """A body that will not fit is refused at the first block that shows it."""
    with pytest.raises(AemosError) as caught:
        Blocks().add("a", *first)
    assert caught.value.kind is Kind.TOO_LARGE


@pytest.mark.parametrize("wrong", [block(0, b"short"), block(0, bytes(1025), more=False), block(0, exponent=7)])
def test_wrong_size_is_400(wrong: Sent) -> None:
    """A block has the size that its option tells; the exponent 7 is not for UDP."""
    with pytest.raises(CoapError) as caught:
        Blocks().add("a", *wrong)
    assert caught.value.code == 4 * 32


def test_bounded_in_number_and_time() -> None:
    """Transfers that nobody ends are forgotten: the quietest when too many, all after a while."""
    now = [0.0]
    blocks = Blocks(lambda: now[0])
    for sender in range(2 * MOST_TRANSFERS + 1):
        blocks.add(sender, *block(0))
    with pytest.raises(CoapError):
        blocks.add(0, *block(1))
    blocks.add(2 * MOST_TRANSFERS, *block(1))
    now[0] = 2 * QUIET_SECONDS + 1
    with pytest.raises(CoapError):
        blocks.add(2 * MOST_TRANSFERS, *block(2))
