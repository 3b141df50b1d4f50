"""C2SP tlog-tiles: paths in their one spelling, and tiles of which there are as many as the specification says."""

from __future__ import annotations

import pytest

from service.audit.tiles import NoTile, bundle, index_path, parse_index, parse_level, tile_path, tiles


@pytest.mark.parametrize(
    ("index", "path"), [(0, "000"), (5, "005"), (999, "999"), (1000, "x001/000"), (1234067, "x001/x234/067")]
)
def test_an_index_has_one_spelling(index: int, path: str) -> None:
    """1234067 is the specification's own example."""
    assert index_path(index) == path
    assert parse_index(path) == (index, 256)
    assert parse_index(f"{path}.p/112") == (index, 112)


@pytest.mark.parametrize(
    "path",
    ["", "0", "00", "0000", "x000/001", "001/000", "x001/x000", "000.p/0", "000.p/256", "000.p/07", "000.p/", "000.p/1/2",
     "x001/ 00", "-01", "٠٠٠", "x" * 60, "x999/" * 9 + "999", "000\n"],
)  # fmt: skip
def test_another_spelling_is_no_tile(path: str) -> None:
    with pytest.raises(NoTile):
        parse_index(path)


@pytest.mark.parametrize("level", ["64", "-1", "01", "", "a", "100", "٣"])
def test_levels_go_to_63(level: str) -> None:
    assert parse_level("63") == 63
    with pytest.raises(NoTile):
        parse_level(level)


def test_the_tiles_of_the_specifications_example() -> None:
    """70,000 entries: 273 full and one of 112 at level 0, one full and one of 17 at level 1, one of 1 at level 2."""
    found = list(tiles(70_000))
    assert [width for level, _, width in found if level == 0] == [256] * 273 + [112]
    assert [(level, index, width) for level, index, width in found if level] == [(1, 0, 256), (1, 1, 17), (2, 0, 1)]
    assert list(tiles(256)) == [(0, 0, 256), (1, 0, 1)]
    assert list(tiles(0)) == []
    assert tile_path(1, 1, 17) == "tile/1/001.p/17"
    assert tile_path("entries", 273, 112) == "tile/entries/273.p/112"


def test_a_bundle_is_length_prefixed_and_a_redacted_entry_is_empty() -> None:
    assert bundle([b"ab", None, b"c"]) == b"\x00\x02ab\x00\x00\x00\x01c"
    assert bundle([b"x" * 65_535])[:2] == b"\xff\xff"
