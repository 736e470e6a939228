import os

import cv2
import imagecodecs
import numpy as np
import pytest
import tifffile

from microplastics.data import regions_tiff
from microplastics.data.regions import open_regions
from microplastics.data.regions_tiff import SegmentCache
from microplastics.errors import UserError

RNG = np.random.default_rng(0)
RGB = cv2.GaussianBlur(RNG.integers(0, 256, (90, 140, 3)).astype(np.uint8), (0, 0), 1)


def everything(regions):
    return regions.read(0, 0, regions.width, regions.height)


def test_the_cache_keeps_what_was_used_last_within_its_bytes():
    cache, decoded = SegmentCache(max_bytes=250), []

    def get(key, size=100):
        return cache.get(key, lambda: decoded.append(key) or np.zeros(size, np.uint8))

    for key in "abacab":
        get(key)
        assert cache.nbytes <= 250
    assert decoded == ["a", "b", "c", "b"]
    get("large", 999)
    assert cache.nbytes == 999
    get("a")
    assert cache.nbytes == 100


@pytest.mark.parametrize("layout", [{"rowsperstrip": 10}, {"tile": (32, 32)}])
def test_windows_row_by_row_unpack_each_piece_once(tmp_path, monkeypatch, layout):
    path = tmp_path / "a.tif"
    wide = np.tile(RGB, (1, 4, 1))
    tifffile.imwrite(path, wide, photometric="rgb", compression="lzw", **layout)
    # Less than a row of windows takes of strips: the cache grows by what that needs.
    monkeypatch.setattr(
        SegmentCache.__init__, "__defaults__", (32 * 1024 * 3 * 2 if "tile" in layout else 9999,)
    )
    decode, decoded = regions_tiff.TiffPixels._decode, []
    monkeypatch.setattr(
        regions_tiff.TiffPixels, "_decode", lambda s, i: decoded.append(i) or decode(s, i)
    )
    with open_regions(path) as regions:
        for y in (0, 30, 60):
            for x in range(0, 560, 40):
                assert np.array_equal(
                    regions.read(x, y, x + 40, y + 30), wide[y : y + 30, x : x + 40, ::-1]
                )
        count = len(decoded)
        assert count == len(set(decoded))
        regions.overview(50)
        assert len(decoded) <= 2 * count


def test_a_region_of_plain_strips_reads_its_own_bytes_alone(tmp_path, monkeypatch):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, RGB, photometric="rgb", rowsperstrip=7)
    fetch, taken = regions_tiff.TiffPixels._bytes, []
    monkeypatch.setattr(
        regions_tiff.TiffPixels, "_bytes", lambda s, o, n: taken.append(n) or fetch(s, o, n)
    )
    with open_regions(path) as regions:
        assert np.array_equal(regions.read(5, 3, 15, 33), RGB[3:33, 5:15, ::-1])
    assert taken == [30] * 30


def test_missing_tiles_hold_the_fill_value(tmp_path):
    path = tmp_path / "a.tif"
    tiles = [RGB[:32, :32], None, RGB[32:64, :32], RGB[32:64, 32:64]]
    tifffile.imwrite(
        path,
        iter(tiles),
        shape=(64, 64, 3),
        dtype="uint8",
        photometric="rgb",
        tile=(32, 32),
        compression="zlib",
        extratags=[(42113, "s", 0, "7", True)],
    )
    with open_regions(path) as regions:
        image = everything(regions)
    assert (image[:32, 32:] == 7).all()
    assert np.array_equal(image[32:, :], RGB[32:64, :64, ::-1])


@pytest.mark.parametrize("options", [{"tile": (32, 32), "compression": "zlib"}, {}])
def test_a_cut_off_file_is_told_of_at_once(tmp_path, options):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, RGB, photometric="rgb", **options)
    os.truncate(path, os.path.getsize(path) - 9)
    words = r"a.tif .*the file ends before its (tile 15 of 15|strip 1 of 1) does.*copy it again"
    with pytest.raises(UserError, match=words), open_regions(path):
        pass


def test_a_file_cut_off_or_damaged_while_it_is_read(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, RGB, photometric="rgb", tile=(32, 32), compression="zlib")
    with tifffile.TiffFile(path) as tiff:
        place = tiff.pages[0].dataoffsets[1]
    content = bytearray(path.read_bytes())
    content[place : place + 20] = bytes(20)
    path.write_bytes(content)
    with open_regions(path) as regions:
        assert np.array_equal(regions.read(0, 0, 32, 32), RGB[:32, :32, ::-1])
        with pytest.raises(UserError, match="a.tif .*its tile 2 of 15.*copy it again"):
            regions.read(0, 0, 33, 32)
        os.truncate(path, 4000)
        with pytest.raises(UserError, match="the file ends before its pixels do"):
            regions.read(100, 60, 140, 90)


def test_bombs(tmp_path):
    """A tile far larger than its image, more tiles than are named, a picture beyond its tile."""
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, RGB, photometric="rgb", tile=(256, 256), compression="zlib")
    with tifffile.TiffFile(path, mode="r+") as tiff:
        for code in (322, 323):
            tiff.pages[0].tags[code].overwrite(65520)
    for allow_large in (False, True):
        with pytest.raises(UserError, match="tiles of 65520 x 65520 px.*decompression bomb"):
            with open_regions(path, allow_large=allow_large):
                pass
    tifffile.imwrite(path, RGB, photometric="rgb", compression="zlib", rowsperstrip=10)
    with tifffile.TiffFile(path, mode="r+") as tiff:
        tiff.pages[0].tags[257].overwrite(65000)
    with pytest.raises(UserError, match="it names 9 of its 6500 tiles or strips"):
        with open_regions(path):
            pass
    for packing in ("jpeg", "jpeg2000"):
        tifffile.imwrite(path, RGB, photometric="rgb", tile=(32, 32), compression=packing)
        huge = np.zeros((900, 900, 3), np.uint8)
        code = imagecodecs.jpeg_encode if packing == "jpeg" else imagecodecs.jpeg2k_encode
        with tifffile.TiffFile(path, mode="r+") as tiff:
            data, file = code(huge), tiff.filehandle
            with open(path, "ab") as end:
                end.write(data)
            page = tiff.pages[0]
            page.tags[324].overwrite([file.size, *page.dataoffsets[1:]])
            page.tags[325].overwrite([len(data), *page.databytecounts[1:]])
        with open_regions(path) as regions:
            with pytest.raises(UserError, match="its tile 1 of 15 holds 900 x 900 x 3 values"):
                regions.read(0, 0, 5, 5)
            assert regions.read(40, 40, 60, 60).shape == (20, 20, 3)
