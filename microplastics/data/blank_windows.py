"""Blank filter images out of annotated ones: the largest square of each without a particle."""

import os
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from microplastics.data.coco import load_instances
from microplastics.data.images import read_image
from microplastics.errors import UserError
from microplastics.files import atomic_write


def largest_free_square(boxes: np.ndarray, width: int, height: int) -> tuple[int, int, int]:
    """Find the largest square of an image that no box reaches into.

    In the chessboard metric a pixel's distance d to the nearest occupied pixel is the radius of
    the largest free square about it, of side 2 d - 1.

    Args:
        boxes: float (N, 4), x0, y0, x1, y1 in px; may reach out of the image.
        width: of the image in px.
        height: of the image in px.

    Returns:
        left, top and side in px; the side is 0 where nothing is free.
    """
    # A frame of occupied pixels: the square ends at the border.
    free = np.pad(np.ones((height, width), np.uint8), 1)
    for x0, y0, x1, y1 in boxes:
        left, top = max(int(np.floor(x0)), 0), max(int(np.floor(y0)), 0)
        right, bottom = max(int(np.ceil(x1)), 0), max(int(np.ceil(y1)), 0)
        free[1 + top : 1 + min(bottom, height), 1 + left : 1 + min(right, width)] = 0
    distance = cv2.distanceTransform(free, cv2.DIST_C, 3)
    row, column = np.unravel_index(int(distance.argmax()), distance.shape)
    radius = int(distance[row, column])
    if radius == 0:
        return 0, 0, 0
    # Four neighbours, each the centre of such a square, are the middle of one of side 2 d.
    full = distance == radius
    middle = full[:-1, :-1] & full[1:, :-1] & full[:-1, 1:] & full[1:, 1:]
    if not middle.any():
        return int(column) - radius, int(row) - radius, 2 * radius - 1
    row, column = np.unravel_index(int(middle.argmax()), middle.shape)
    return int(column) - radius, int(row) - radius, 2 * radius


def cut_blank_windows(
    json_file: str | os.PathLike,
    image_root: str | os.PathLike,
    output: str | os.PathLike,
    min_size: int = 256,
    margin: int = 25,
) -> tuple[list[Path], list[str]]:
    """Write the largest particle-free square of each image as a PNG.

    Args:
        json_file: COCO JSON whose particles are all annotated.
        image_root: its image folder.
        output: folder of the PNGs.
        min_size: least side in px; images without such a square are left out.
        margin: px kept free around each particle, for its halo.

    Returns:
        the files written, and the images left out.

    Raises:
        UserError: the data set cannot be used, or no image has such a square.
    """
    if min_size < 1 or margin < 0:
        raise UserError(f"--min-size {min_size} and --margin {margin} must be above 0 px.")
    written, without, taken = [], [], set()
    for image in tqdm(load_instances(json_file, image_root), desc="Cutting", disable=None):
        boxes = np.array([a["bbox"] for a in image["annotations"]], float).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        boxes += (-margin, -margin, margin, margin)
        x, y, side = largest_free_square(boxes, image["width"], image["height"])
        if side < min_size:
            without.append(image["file_name"])
            continue
        pixels = read_image(image["file_name"], expected_size=(image["width"], image["height"]))
        path = _free_name(Path(image["file_name"]), image_root, Path(output), f"{x}_{y}", taken)
        _, encoded = cv2.imencode(".png", pixels[y : y + side, x : x + side])
        with atomic_write(path, "wb") as file:
            file.write(encoded.tobytes())
        written.append(path)
        taken.add(path)
    if not written:
        raise UserError(
            f"No image of {json_file} has a square of {min_size} px without a particle; lower "
            "--min-size or --margin."
        )
    return written, without


def _free_name(
    image: Path, root: str | os.PathLike, output: Path, place: str, taken: set[Path]
) -> Path:
    """Name of a square, in the folder that the image has below its root; unlike all others."""
    folder = output / os.path.relpath(image.parent, root)
    path = folder / f"{image.stem}_{place}.png"
    return path if path not in taken else folder / f"{image.stem}_{image.suffix[1:]}_{place}.png"
