import os
import struct
import zlib

import cv2
import numpy as np
import pytest
import tifffile
from detectron2.data.detection_utils import read_image as detectron2_read_image
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from support import user_error

from microplastics.data.images import image_header, read_image, to_uint8
from microplastics.utils.errors import UserError

RNG = np.random.default_rng(0)
RGB = np.kron(RNG.integers(0, 256, (5, 8, 3)), np.ones((4, 4, 1))).astype(np.uint8)  # 20 x 32
DEEP = RNG.integers(0, 65536, (20, 32, 3), dtype=np.uint16)


def _exif(orientation):
    exif = Image.Exif()
    exif[274] = orientation
    return exif


@pytest.mark.parametrize(
    ("suffix", "mode"),
    [
        (suffix, mode)
        for suffix, modes in {
            "jpg": "RGB L CMYK YCbCr",
            "png": "RGB L RGBA P 1 LA",
            "bmp": "RGB L RGBA P 1",
            "tif": "RGB L RGBA P CMYK 1 LA YCbCr",
            "webp": "RGB RGBA",
            "ppm": "RGB L 1",
            "jp2": "RGB L RGBA LA",
            "gif": "RGB L P",
        }.items()
        for mode in modes.split()
    ],
)
def test_eight_bit_files_read_as_detectron2_reads_them(tmp_path, suffix, mode):
    path = str(tmp_path / f"a.{suffix}")
    Image.fromarray(RGB).convert(mode).save(path)
    image = read_image(path)
    assert image.dtype == np.uint8 and image.flags["C_CONTIGUOUS"] and image.flags["WRITEABLE"]
    assert (image == detectron2_read_image(path, "BGR")).all()
    assert image_header(path) == ((32, 20), False)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation(tmp_path, suffix, orientation):
    path = str(tmp_path / f"a.{suffix}")
    Image.fromarray(RGB).save(path, exif=_exif(orientation))
    image = read_image(path)
    assert (image == detectron2_read_image(path, "BGR")).all()
    swapped = orientation >= 5
    assert image_header(path) == ((20, 32) if swapped else (32, 20), swapped)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["rgb", "grey", "deep rgb", "deep grey", "deep png"])
def test_exif_rotation_of_tiff_and_deep_images(tmp_path, kind, orientation):
    """One turn, where Detectron2 turns a TIFF twice."""
    pixels = {"rgb": RGB, "grey": RGB[..., 0], "deep grey": DEEP[..., 0]}.get(kind, DEEP)
    plain, turned = str(tmp_path / "plain.png"), str(tmp_path / "turned.tif")
    cv2.imwrite(plain, pixels[..., ::-1] if pixels.ndim == 3 else pixels)
    if kind == "deep png":
        turned = str(tmp_path / "turned.png")
        with open(plain, "rb") as file:
            content = file.read()
        exif = b"II*\0" + struct.pack("<IHHHIII", 8, 1, 274, 3, 1, orientation, 0)
        chunk = b"eXIf" + exif
        chunk = struct.pack(">I", len(exif)) + chunk + struct.pack(">I", zlib.crc32(chunk))
        with open(turned, "wb") as file:
            file.write(content[:33] + chunk + content[33:])  # behind IHDR
    else:
        photometric = "rgb" if pixels.ndim == 3 else "minisblack"
        tags = [(274, "H", 1, orientation, True)]
        tifffile.imwrite(turned, pixels, photometric=photometric, extratags=tags)
    jpeg = str(tmp_path / "index.png")  # Detectron2's own turn of a picture of pixel numbers
    Image.fromarray(np.arange(640, dtype=np.int32).reshape(20, 32).astype(np.uint16)).save(
        jpeg, exif=_exif(orientation)
    )
    order = detectron2_read_image(jpeg, "I")
    expected = read_image(plain).reshape(-1, 3)[np.asarray(order).reshape(order.shape[:2])]
    assert (read_image(turned) == expected).all()
    assert image_header(turned) == (expected.shape[1::-1], orientation >= 5)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"byteorder": ">"},
        {"bigtiff": True},
        {"tile": (16, 16)},
        {"compression": "zlib", "predictor": True},
        {"planarconfig": "separate"},
    ],
)
def test_sixteen_bit_colour_tiff(tmp_path, options):
    planar = "planarconfig" in options
    data = DEEP.transpose(2, 0, 1) if planar else DEEP
    tifffile.imwrite(tmp_path / "a.tif", data, photometric="rgb", **options)
    assert (read_image(tmp_path / "a.tif") == to_uint8(DEEP)[..., ::-1]).all()


def test_sixteen_bit_colour_png_and_lzw_tiff_and_alpha(tmp_path):
    expected = to_uint8(DEEP)[..., ::-1]
    bgra = np.dstack([DEEP[..., ::-1], DEEP[..., :1]])
    cv2.imwrite(str(tmp_path / "a.png"), DEEP[..., ::-1])
    cv2.imwrite(str(tmp_path / "alpha.png"), bgra)
    cv2.imwrite(str(tmp_path / "lzw.tif"), DEEP[..., ::-1], [cv2.IMWRITE_TIFF_COMPRESSION, 5])
    tifffile.imwrite(
        tmp_path / "alpha.tif",
        bgra[..., [2, 1, 0, 3]],
        photometric="rgb",
        extrasamples=["unassalpha"],
    )
    for name in ("a.png", "alpha.png", "lzw.tif", "alpha.tif"):
        assert (read_image(tmp_path / name) == expected).all(), name


@pytest.mark.parametrize("dtype", ["uint16", "int16", "uint32", "int32", "float32", "float64"])
def test_deep_grey(tmp_path, dtype):
    grey = DEEP[..., 0].astype(np.int64)
    grey = (grey - 32768 if dtype == "int16" else grey).astype(dtype)
    tifffile.imwrite(tmp_path / "a.tif", grey, photometric="minisblack")
    tifffile.imwrite(tmp_path / "white.tif", grey, photometric="miniswhite")
    expected = to_uint8(DEEP[..., :1]).repeat(3, axis=2)
    assert (read_image(tmp_path / "a.tif") == expected).all()
    assert (read_image(tmp_path / "white.tif") == 255 - expected).all()


def test_float_colour(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", DEEP.astype(np.float32), photometric="rgb")
    assert (read_image(tmp_path / "a.tif") == to_uint8(DEEP)[..., ::-1]).all()
    assert image_header(tmp_path / "a.tif") == ((32, 20), False)


def test_stretch_is_from_the_0_1_to_the_99_9_percentile():
    ramp = np.arange(10001, dtype=np.uint16)
    out = to_uint8(ramp)
    assert (out[:11] == 0).all() and (out[9990:] == 255).all()
    assert out[5000] == round((5000 - 10) / (9990 - 10) * 255)
    assert (to_uint8(ramp.astype(np.float32)) == out).all()


def test_stretch_of_odd_images():
    assert (to_uint8(np.full((4, 4), 700, np.uint16)) == 0).all()
    speck = np.zeros((100, 100), np.uint16)
    speck[0, 0] = 900  # beyond both percentiles, and yet the whole picture
    assert to_uint8(speck)[0, 0] == 255 and to_uint8(speck).sum() == 255
    odd = np.array([np.nan, np.inf, -np.inf, 0.0, 1.0, 3e38, -3e38])
    assert to_uint8(odd).tolist() == [0, 255, 0, 128, 128, 255, 0]
    assert (to_uint8(np.full(3, np.nan)) == 0).all()
    assert to_uint8(np.array([1.7e308, -1.7e308])).tolist() == [255, 0]


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "bmp"])
def test_truncated_image(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(RNG.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[: os.path.getsize(path) // 2])
    with user_error("image_invalid", path):
        read_image(path)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_truncated_deep_image(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    cv2.imwrite(str(path), DEEP, [cv2.IMWRITE_TIFF_COMPRESSION, 5])
    path.write_bytes(path.read_bytes()[: os.path.getsize(path) // 2])
    with user_error("image_invalid", path):
        read_image(path)


def test_files_that_are_no_images(tmp_path):
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("not an image, only words")
    (tmp_path / "a.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    os.mkfifo(tmp_path / "pipe.jpg")
    for read in (read_image, image_header):
        for name in ("empty.jpg", "text.jpg", "a.eps", "pipe.jpg", ".", "nul\0.jpg"):
            with user_error("image_invalid", tmp_path / name):
                read(tmp_path / name)
        with user_error("file_missing", "none.jpg"):
            read(tmp_path / "none.jpg")


def test_decompression_bomb(tmp_path):
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)

    def chunk(name, body):
        crc = struct.pack(">I", zlib.crc32(name + body))
        return struct.pack(">I", len(body)) + name + body + crc

    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    for read in (read_image, image_header):
        with user_error("image_too_large", "bomb.png", "60000 x 60000 px", "178956970"):
            read(tmp_path / "bomb.png")
    # A higher limit also lifts Pillow's own, only for this file.
    bound = Image.MAX_IMAGE_PIXELS
    assert image_header(tmp_path / "bomb.png", max_pixels=2**32)[0] == (60000, 60000)
    assert bound == Image.MAX_IMAGE_PIXELS
    Image.fromarray(RGB).save(tmp_path / "a.png")
    with user_error("image_too_large", "a.png", "32 x 20 px", "639"):
        read_image(tmp_path / "a.png", max_pixels=639)
    assert read_image(tmp_path / "a.png", max_pixels=640).shape == (20, 32, 3)


def test_expected_size(tmp_path):
    path = tmp_path / "a.jpg"
    Image.fromarray(RGB).save(path)
    assert read_image(path, expected_size=(32, 20)).shape == (20, 32, 3)
    with user_error("image_size", path, "is 32 x 20 px", "64 x 40 px"):
        read_image(path, expected_size=(64, 40))
    with user_error("image_size", path, "swapped"):
        read_image(path, expected_size=(20, 32))
    Image.fromarray(RGB).save(path, exif=_exif(6))
    with user_error("image_size", path, "is 20 x 32 px", "32 x 20 px", "EXIF rotation"):
        read_image(path, expected_size=(32, 20))


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kind=st.sampled_from(["jpg", "png", "tif", "deep.png", "deep.tif", "gif"]), data=st.data())
def test_damaged_bytes_never_end_in_anything_but_a_sentence(tmp_path, kind, data):
    path = tmp_path / f"a.{kind}"
    if kind.startswith("deep"):
        cv2.imwrite(str(path), DEEP)
    else:
        Image.fromarray(RGB).save(path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        place = data.draw(st.integers(0, len(content) - 1) | st.integers(0, 200))
        content[min(place, len(content) - 1)] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(1, len(content)))])
    for read in (read_image, image_header):
        try:
            read(path, max_pixels=10**6)
        except UserError as error:
            assert str(path) in str(error)
