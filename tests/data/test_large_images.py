import logging
import os
import struct
import threading
import zlib

import cv2
import imagecodecs
import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from support import user_error

from microplastics.data import large_images
from microplastics.data.images import read_image, to_uint8
from microplastics.data.large_images import TiffReader, open_reader
from microplastics.utils.errors import UserError

RNG = np.random.default_rng(0)
SMOOTH = cv2.GaussianBlur(RNG.random((90, 140, 5), np.float32), (0, 0), 2)
SMOOTH = (SMOOTH - SMOOTH.min()) / np.ptp(SMOOTH) * 255
RGB = SMOOTH[:, :, :3].astype(np.uint8)
DETAILED = cv2.GaussianBlur(RNG.integers(0, 256, (90, 140, 3)).astype(np.uint8), (0, 0), 1)
DEEP = ("uint16", "int16", "float16", "uint32", "int32", "float32", "uint64", "int64", "float64")


fixture_is_fine = settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(autouse=True)
def quiet_tifffile():
    logger = logging.getLogger("tifffile")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(level)


def everything(reader):
    return reader.read(0, 0, reader.width, reader.height)


def cut(data, width, height):
    x0, y0 = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    return (
        *(x0, y0),
        data.draw(st.integers(x0 + 1, width)),
        data.draw(st.integers(y0 + 1, height)),
    )


@st.composite
def tiffs(draw):
    """Pixels and the options of ``tifffile.imwrite``."""
    dtype = draw(st.sampled_from(("uint8",) * 6 + DEEP))
    samples = draw(st.sampled_from([1, 1, 2, 3, 3, 3, 4, 5]))
    colour = samples >= 3 and draw(st.integers(0, 3)) > 0
    grey = draw(st.sampled_from(["minisblack", "miniswhite"]))
    height, width = draw(st.sampled_from([(90, 140), (33, 77), (64, 64)]))
    array = SMOOTH[:height, :width, :samples]
    array = (array * (200 if np.dtype(dtype).itemsize > 1 else 1)).astype(dtype)
    options = {
        "photometric": "rgb" if colour else grey,
        "byteorder": draw(st.sampled_from("<>")),
        "bigtiff": draw(st.booleans()),
    }
    packings = [None, "zlib", "lzw", "packbits", "zstd"]
    if dtype == "uint8":
        packings += ["jpeg"] if samples in (1, 3) else []
        packings += ["jpeg2000"] if samples in (1, 3, 4) else []
    packing = options["compression"] = draw(st.sampled_from(packings))
    if packing in ("zlib", "lzw", "zstd") and dtype in ("uint8", "uint16"):
        options["predictor"] = draw(st.booleans())
    if draw(st.booleans()):
        options["tile"] = draw(st.sampled_from([(16, 16), (32, 48), (128, 160)]))
    else:
        options["rowsperstrip"] = 16 if packing == "jpeg" else draw(st.sampled_from([1, 7, 999]))
    if samples == 1:
        array = array[:, :, 0]
    elif packing not in ("jpeg", "jpeg2000") and draw(st.booleans()):
        array, options["planarconfig"] = array.transpose(2, 0, 1).copy(), "separate"
    else:
        options["planarconfig"] = "contig"
    if extra := samples - (3 if colour else 1):
        options["extrasamples"] = [draw(st.sampled_from([0, 1, 2]))] + [0] * (extra - 1)
    orientation = draw(st.integers(1, 8))
    return array, {**options, "extratags": [(274, "H", 1, orientation, True)]}


@fixture_is_fine
@given(tiff=tiffs(), data=st.data())
def test_windows_are_those_of_the_whole_image(tmp_path, tiff, data):
    path = tmp_path / "a.tif"
    array, options = tiff
    tifffile.imwrite(path, array, metadata=None, **options)
    try:
        whole = read_image(path)
    except UserError:  # of 8 bits in kinds of extra channels that Pillow does not know
        return
    with open_reader(path) as reader:
        assert (reader.width, reader.height) == whole.shape[1::-1]
        for _ in range(3):
            x0, y0, x1, y1 = cut(data, reader.width, reader.height)
            region = reader.read(x0, y0, x1, y1)
            assert region.flags["C_CONTIGUOUS"] and region.flags["WRITEABLE"]
            assert region.dtype == np.uint8
            assert np.array_equal(region, whole[y0:y1, x0:x1])


MODES = {
    **dict.fromkeys("1 L LA P RGB RGBA CMYK YCbCr LAB I F".split(), "raw tiff_lzw packbits"),
    "RGB ": "jpeg tiff_adobe_deflate",
    "L ": "jpeg",
    "1 ": "group3 group4",
}


@pytest.mark.parametrize(
    ("mode", "packing"), [(m.strip(), p) for m, packings in MODES.items() for p in packings.split()]
)
def test_tiffs_of_pillow(tmp_path, mode, packing):
    path = tmp_path / "a.tif"
    Image.fromarray(RGB).convert("L" if mode in "IF" else "RGB").convert(mode).save(
        path, compression=packing
    )
    whole = read_image(path)
    with open_reader(path) as reader:
        decoded_whole = mode in ("LAB", "YCbCr", "1", "P", "CMYK")
        assert isinstance(reader, TiffReader) != decoded_whole
        assert np.array_equal(everything(reader), whole)
        assert np.array_equal(reader.read(13, 21, 70, 89), whole[21:89, 13:70])


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("photometric", [0, 1, 3])
def test_few_bits(tmp_path, bits, photometric):
    """Written by hand: no writer at hand has 2 and 4 bits."""
    rows, columns = 5, 13
    values = RNG.integers(0, 1 << bits, (rows, columns)).astype(np.uint8)
    packed = b"".join(imagecodecs.packints_encode(row, bits) for row in values)
    tags = [(256, columns), (257, rows), (258, bits), (259, 1), (262, photometric)]
    tags += [(273, 0), (277, 1), (278, 2), (279, 0)]
    stride = len(packed) // rows
    colours = RNG.integers(0, 65536, 3 << bits).astype("<u2").tobytes()
    entries = len(tags) + (photometric == 3)
    place = 8 + 2 + 12 * entries + 4
    head = b"II*\0" + struct.pack("<IH", 8, entries)
    strips = [place + 24 + len(colours) + 2 * stride * i for i in range(3)]
    for tag, value in tags:
        if tag in (273, 279):
            head += struct.pack("<HHII", tag, 4, 3, place + (12 if tag == 279 else 0))
        else:
            head += struct.pack("<HHIHH", tag, 3, 1, value, 0)
    if photometric == 3:
        head += struct.pack("<HHII", 320, 3, 3 << bits, place + 24)
    head += struct.pack("<I3I3I", 0, *strips, 2 * stride, 2 * stride, stride) + colours
    path = tmp_path / "a.tif"
    path.write_bytes(head + packed)
    whole = read_image(path)
    with open_reader(path) as reader:
        assert np.array_equal(reader.read(3, 1, 13, 5), whole[1:5, 3:13])


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "webp", "gif"])
def test_other_formats_are_decoded_once(tmp_path, monkeypatch, suffix):
    path = tmp_path / f"a.{suffix}"
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(RGB).save(path, **({"exif": exif} if suffix == "jpg" else {}))
    whole, decoded = read_image(path), []
    monkeypatch.setattr(
        large_images, "read_image", lambda p, *a: decoded.append(p) or read_image(p, *a)
    )
    with open_reader(path) as reader:
        assert (reader.width, reader.height) == whole.shape[1::-1] and not decoded
        region = reader.read(1, 2, 50, 60)
        assert np.array_equal(region, whole[2:60, 1:50])
        region[:] = 0  # a copy
        assert np.array_equal(everything(reader), whole)
        shrunk, scale = reader.overview(70)
        assert max(shrunk.shape) == 70 and scale == 2.0
    assert len(decoded) == 1


def test_ome_channels_on_pages_of_their_own(tmp_path):
    """The first page alone, as everywhere else."""
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(
        path, RGB.transpose(2, 0, 1), photometric="minisblack", metadata={"axes": "CYX"}
    )
    with open_reader(path) as reader:
        assert np.array_equal(everything(reader), read_image(path))
        assert np.array_equal(everything(reader)[:, :, 1], RGB[:, :, 0])


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("options", [{"tile": (32, 48), "compression": "zlib"}, {}])
def test_overview_of_a_plain_tiff(tmp_path, monkeypatch, orientation, options):
    path = tmp_path / "a.tif"
    tags = [(274, "H", 1, orientation, True)]
    tifffile.imwrite(path, RGB, photometric="rgb", extratags=tags, **options)
    monkeypatch.setattr(large_images, "read_image", None)
    with open_reader(path) as reader:
        whole = everything(reader)
        shrunk, scale = reader.overview(61)
        size = shrunk.shape[1::-1]
        assert max(size) == 61 and scale == 140 / 61
        expected = cv2.resize(whole, size, interpolation=cv2.INTER_AREA)
        assert np.abs(shrunk.astype(int) - expected).max() <= 1
        same, scale = reader.overview(140)
        assert scale == 1.0 and np.array_equal(same, whole)
        assert reader.overview(1)[0].shape == (1, 1, 3)


@pytest.mark.parametrize("kind", ["SubIFDs", "OME", "reduced pages", "plain pages"])
def test_the_fitting_level_of_a_pyramid_is_read(tmp_path, kind):
    path = tmp_path / ("a.ome.tif" if kind == "OME" else "a.tif")
    sub = 2 if kind in ("SubIFDs", "OME") else 0
    with tifffile.TiffWriter(path) as writer:
        for level in range(3):
            # Each level in a colour of its own.
            pixels = np.full((400 >> level, 600 >> level, 3), 50 * level, np.uint8)
            writer.write(
                pixels,
                photometric="rgb",
                tile=(64, 64),
                compression="jpeg" if kind == "SubIFDs" else "zlib",
                subifds=sub if level == 0 else 0,
                subfiletype=int(level > 0 and kind != "plain pages"),
                metadata={"axes": "YXS"} if kind == "OME" else None,
            )
    with open_reader(path) as reader:
        assert (reader.width, reader.height) == (600, 400)
        assert (everything(reader) == 0).all()
        for side, level in {600: 0, 301: 0, 300: 1, 200: 1, 150: 2, 20: 2}.items():
            shrunk, scale = reader.overview(side)
            assert shrunk.shape == (round(side * 2 / 3), side, 3) and scale == 600 / side
            # JPEG may be off by a few levels.
            assert (abs(shrunk.astype(int) - (kind != "plain pages") * 50 * level) <= 5).all()


def test_deep_images_without_grey_levels(tmp_path):
    path = tmp_path / "a.tif"
    for value in (np.nan, 3.5):
        tifffile.imwrite(path, np.full((40, 50), value, np.float32), tile=(16, 16))
        with open_reader(path) as reader:
            assert (everything(reader) == 0).all()
    odd = np.where(SMOOTH[:, :, 0] > 128, np.inf, SMOOTH[:, :, 0]).astype(np.float32)
    odd[3, 4] = np.nan
    tifffile.imwrite(path, odd, tile=(16, 16))
    with open_reader(path) as reader:
        assert np.array_equal(everything(reader)[:, :, 0], to_uint8(odd))


def test_two_threads(tmp_path, monkeypatch):
    monkeypatch.setattr(large_images, "CACHE_BYTES", 3000)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, RGB, photometric="rgb", tile=(16, 16), compression="zlib")
    wrong = []
    with open_reader(path) as reader:

        def work(seed):
            rng = np.random.default_rng(seed)
            for _ in range(100):
                x, y = int(rng.integers(0, 100)), int(rng.integers(0, 60))
                if not np.array_equal(
                    reader.read(x, y, x + 30, y + 30), RGB[y : y + 30, x : x + 30, ::-1]
                ):
                    wrong.append((x, y))

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


def test_windows_outside_are_bugs(tmp_path):
    Image.fromarray(RGB).save(tmp_path / "a.png")
    with open_reader(tmp_path / "a.png") as reader:
        for box in [(0, 0, 141, 90), (-1, 0, 5, 5), (5, 5, 5, 9), (0, 80, 5, 91)]:
            with pytest.raises(ValueError, match="not a window of .*a.png, which is 140 x 90 px"):
                reader.read(*box)


def test_files_that_are_no_images(tmp_path):
    (tmp_path / "empty.tif").touch()
    (tmp_path / "text.tif").write_text("not an image, only words")
    (tmp_path / "head.tif").write_bytes(b"II*\0\x08\0\0\0")
    for name in ("empty.tif", "text.tif", "head.tif", "."):
        with user_error("image_invalid", tmp_path / name), open_reader(tmp_path / name):
            pass
    with user_error("file_missing", "none.tif"), open_reader(tmp_path / "none.tif"):
        pass


def test_what_must_be_decoded_whole_is_limited(tmp_path):
    Image.fromarray(RGB).save(tmp_path / "a.png")
    tifffile.imwrite(
        tmp_path / "strip.tif", RGB, photometric="rgb", compression="lzw", rowsperstrip=90
    )
    tifffile.imwrite(tmp_path / "tiles.tif", RGB, photometric="rgb", tile=(32, 32))
    tifffile.imwrite(tmp_path / "plain.tif", RGB, photometric="rgb")
    for name in ("a.png", "strip.tif"):
        with user_error("image_too_large", name, "140 x 90 px", "5000", "--allow-large"):
            with open_reader(tmp_path / name, max_pixels=5000):
                pass
        with open_reader(tmp_path / name, max_pixels=5000, allow_large=True) as reader:
            assert np.array_equal(everything(reader), RGB[:, :, ::-1])
    for name in ("tiles.tif", "plain.tif"):
        with open_reader(tmp_path / name, max_pixels=5000) as reader:
            assert np.array_equal(everything(reader), RGB[:, :, ::-1])


@fixture_is_fine
@given(tiff=tiffs(), data=st.data())
def test_damaged_bytes_never_end_in_anything_but_a_sentence(tmp_path, tiff, data):
    path = tmp_path / "a.tif"
    array, options = tiff
    tifffile.imwrite(path, array, metadata=None, **options)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        place = data.draw(st.integers(0, len(content) - 1) | st.integers(0, 200))
        content[min(place, len(content) - 1)] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(1, len(content)) | st.just(len(content)))])
    try:
        with open_reader(path, max_pixels=10**6) as reader:
            side = min(reader.width, 200), min(reader.height, 200)
            assert reader.read(0, 0, *side).shape == (*side[::-1], 3)
            if reader.width * reader.height < 10**7:
                reader.overview(50)
    except UserError as error:
        assert str(path) in str(error)


def test_a_bomb_of_another_format(tmp_path):
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + b"IHDR" + header
    chunk += struct.pack(">I", zlib.crc32(b"IHDR" + header)) + struct.pack(">I", 0) + b"IDAT"
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk)
    with user_error("image_too_large", "a.png", "60000 x 60000 px"):
        with open_reader(tmp_path / "a.png"):
            pass


def test_the_other_pages_of_a_stack_are_counted(tmp_path):
    path = tmp_path / "stack.tif"
    tifffile.imwrite(path, np.zeros((4, 30, 40), np.uint8), photometric="minisblack")
    with open_reader(path) as reader:
        assert (reader.width, reader.other_pages) == (40, 3)


def test_percentiles_of_a_large_image_are_sampled(tmp_path, monkeypatch):
    path = tmp_path / "a.tif"
    values = np.exp(RNG.normal(0, 1, (700, 900))).astype(np.float32)
    tifffile.imwrite(path, values, tile=(64, 64))
    monkeypatch.setattr(large_images, "_SAMPLED_VALUES", 50_000)
    with open_reader(path) as reader:
        found = everything(reader)[:, :, 0].astype(int)
    assert np.abs(found - to_uint8(values)).max() <= 25 and np.median(found) > 5
    tifffile.imwrite(path, (values * 500).astype(np.uint16), tile=(64, 64))
    with open_reader(path) as reader:
        assert np.array_equal(everything(reader), read_image(path))


@pytest.mark.parametrize("layout", [{"rowsperstrip": 10}, {"tile": (32, 32)}])
def test_windows_row_by_row_unpack_each_piece_once(tmp_path, monkeypatch, layout):
    path = tmp_path / "a.tif"
    wide = np.tile(DETAILED, (1, 4, 1))
    tifffile.imwrite(path, wide, photometric="rgb", compression="lzw", **layout)
    # Too little for the strips of a row of windows, whose cache is therefore larger.
    monkeypatch.setattr(
        large_images, "CACHE_BYTES", 32 * 1024 * 3 * 2 if "tile" in layout else 9999
    )
    decode, decoded = large_images._TiffPage._decode, []
    monkeypatch.setattr(
        large_images._TiffPage, "_decode", lambda s, *at: decoded.append(at) or decode(s, *at)
    )
    with open_reader(path) as reader:
        for y in (0, 30, 60):
            for x in range(0, 560, 40):
                assert np.array_equal(
                    reader.read(x, y, x + 40, y + 30), wide[y : y + 30, x : x + 40, ::-1]
                )
        count = len(decoded)
        assert count == len(set(decoded))
        reader.overview(50)
        assert len(decoded) <= 2 * count


def test_a_window_of_plain_strips_reads_only_its_pixels(tmp_path, monkeypatch):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, DETAILED, photometric="rgb", rowsperstrip=7)
    read_array, taken = tifffile.FileHandle.read_array, []
    monkeypatch.setattr(
        tifffile.FileHandle,
        "read_array",
        lambda self, dtype, count, start: taken.append(count)
        or read_array(self, dtype, count, start),
    )
    with open_reader(path, max_pixels=5000) as reader:
        assert np.array_equal(reader.read(5, 3, 15, 33), DETAILED[3:33, 5:15, ::-1])
    assert taken == [30] * 30


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_missing_tiles_have_the_fill_value(tmp_path, dtype):
    path = tmp_path / "a.tif"
    tiles = [DETAILED[:32, :32], None, DETAILED[32:64, :32], DETAILED[32:64, 32:64]]
    tifffile.imwrite(
        path,
        (tile if tile is None else tile.astype(dtype) for tile in tiles),
        shape=(64, 64, 3),
        dtype=dtype,
        photometric="rgb",
        tile=(32, 32),
        compression="zlib",
        extratags=[(42113, "s", 0, "7", True)],
    )
    expected = DETAILED[:64, :64].astype(dtype)
    expected[:32, 32:] = 7
    with open_reader(path) as reader:
        assert np.array_equal(everything(reader), to_uint8(expected)[:, :, ::-1])


@pytest.mark.parametrize("options", [{"tile": (32, 32), "compression": "zlib"}, {}])
def test_a_cut_off_file_is_told_of_at_once(tmp_path, options):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, DETAILED, photometric="rgb", **options)
    os.truncate(path, os.path.getsize(path) - 9)
    with user_error("image_invalid", path, "the file ends"), open_reader(path):
        pass


def test_a_file_cut_off_or_damaged_while_it_is_read(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, DETAILED, photometric="rgb", tile=(32, 32), compression="zlib")
    with tifffile.TiffFile(path) as tiff:
        place = tiff.pages[0].dataoffsets[1]
    content = bytearray(path.read_bytes())
    content[place : place + 20] = bytes(20)
    path.write_bytes(content)
    with open_reader(path) as reader:
        assert np.array_equal(reader.read(0, 0, 32, 32), DETAILED[:32, :32, ::-1])
        with user_error("image_invalid", path):
            reader.read(0, 0, 33, 32)
        os.truncate(path, 4000)
        with user_error("image_invalid", path):
            reader.read(100, 60, 140, 90)


def test_bombs(tmp_path):
    """A tile far larger than its image, more tiles than listed, coded data larger than its tile."""
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, DETAILED, photometric="rgb", tile=(256, 256), compression="zlib")
    with tifffile.TiffFile(path, mode="r+") as tiff:
        for code in (322, 323):
            tiff.pages[0].tags[code].overwrite(65520)
    for allow_large in (False, True):
        with user_error("image_too_large", path, "65520 x 65520 px"):
            with open_reader(path, allow_large=allow_large):
                pass
    tifffile.imwrite(path, DETAILED, photometric="rgb", compression="zlib", rowsperstrip=10)
    with tifffile.TiffFile(path, mode="r+") as tiff:
        tiff.pages[0].tags[257].overwrite(65000)
    with open_reader(path) as reader, user_error("image_invalid", path):
        reader.read(0, 100, 5, 105)
    for packing in ("jpeg", "jpeg2000"):
        tifffile.imwrite(path, DETAILED, photometric="rgb", tile=(32, 32), compression=packing)
        huge = np.zeros((900, 900, 3), np.uint8)
        code = imagecodecs.jpeg_encode if packing == "jpeg" else imagecodecs.jpeg2k_encode
        with tifffile.TiffFile(path, mode="r+") as tiff:
            data, file = code(huge), tiff.filehandle
            with open(path, "ab") as end:
                end.write(data)
            page = tiff.pages[0]
            page.tags[324].overwrite([file.size, *page.dataoffsets[1:]])
            page.tags[325].overwrite([len(data), *page.databytecounts[1:]])
        with open_reader(path) as reader:
            with user_error("image_invalid", path, "900 x 900 px"):
                reader.read(0, 0, 5, 5)
            assert reader.read(40, 40, 60, 60).shape == (20, 20, 3)
