"""The card's pictures: drawn from the record, the same each time. They need the extra `plots`."""

import struct

import msgspec
import pytest

from hubtool.card import pictures
from hubtool.card.view import PICTURES
from tests.card.records import QUALITY_EVIDENCE, with_evidence
from tests.fixtures import Conversions

pytest.importorskip("matplotlib")


def test_every_picture_is_drawn_and_the_same_each_time(converted: Conversions) -> None:
    record = with_evidence(converted("mini", "mixed_3_6").record, QUALITY_EVIDENCE)
    drawn = pictures.draw(record)
    assert set(drawn) == set(PICTURES)
    assert pictures.draw(record) == drawn
    for picture in drawn.values():
        assert picture.startswith(b"\x89PNG\r\n\x1a\n")
        assert struct.unpack(">II", picture[16:24]) == (
            pictures.WIDTH * pictures.DPI,
            pytest.approx(pictures.HEIGHT * pictures.DPI, abs=1),
        )
        assert b"Software" not in picture


def test_pictures_without_facts_are_left_out(converted: Conversions) -> None:
    record = converted("mini", "mixed_3_6").record
    layers = tuple(msgspec.structs.replace(share, error=None) for share in record.plan.layers)
    unmeasured = msgspec.structs.replace(record, plan=msgspec.structs.replace(record.plan, layers=layers))
    assert "assets/error.png" not in pictures.draw(unmeasured)
    unplanned = msgspec.structs.replace(record, plan=msgspec.structs.replace(record.plan, layers=()))
    assert set(pictures.draw(unplanned)) == {"assets/bytes.png"}
