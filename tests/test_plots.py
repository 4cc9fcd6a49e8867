"""The card's pictures: drawn from the record, the same each time. They need the extra `plots`."""

import struct

import msgspec
import pytest

from hubtool import plots
from hubtool.card.view import PICTURES
from tests.fixtures import Conversions

pytest.importorskip("matplotlib")


def test_every_picture_is_drawn_and_the_same_each_time(converted: Conversions) -> None:
    record = converted("mini", "mixed_3_6").record
    pictures = plots.draw(record)
    assert set(pictures) == set(PICTURES)
    assert plots.draw(record) == pictures
    for picture in pictures.values():
        assert picture.startswith(b"\x89PNG\r\n\x1a\n")
        assert struct.unpack(">II", picture[16:24]) == (
            plots.WIDTH * plots.DPI,
            pytest.approx(plots.HEIGHT * plots.DPI, abs=1),
        )
        assert b"Software" not in picture


def test_pictures_without_facts_are_left_out(converted: Conversions) -> None:
    record = converted("mini", "mixed_3_6").record
    layers = tuple(msgspec.structs.replace(share, error=None) for share in record.plan.layers)
    unmeasured = msgspec.structs.replace(record, plan=msgspec.structs.replace(record.plan, layers=layers))
    assert "assets/error.png" not in plots.draw(unmeasured)
    unplanned = msgspec.structs.replace(record, plan=msgspec.structs.replace(record.plan, layers=()))
    assert set(plots.draw(unplanned)) == {"assets/bytes.png"}
