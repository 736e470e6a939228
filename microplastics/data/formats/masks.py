"""Label images out: one 32-bit TIFF a picture, and the class of every number in ``classes.csv``."""

import csv
import io
import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import numpy as np
import pycocotools.mask as mask_util
import tifffile
from PIL import Image
from tqdm import tqdm

from microplastics.data.coco import show
from microplastics.data.formats import layout
from microplastics.data.formats.base import ImageRecord, Instance, Notes, ReadOptions, Source
from microplastics.data.formats.layout import (
    CLASSES_CSV,
    IMAGE_SUFFIXES,
    ClassTable,
    Folders,
    ImageNames,
    MaskFile,
    find_beside,
    find_mask_folders,
    is_marked,
    looks_like_masks,
    read_class_list,
    read_class_table,
    safe_name,
)
from microplastics.data.images import (
    MAX_PIXELS,
    check_pixels,
    decode_with_opencv,
    image_header,
    is_deep_png,
    open_image,
    size_mismatch,
)
from microplastics.data.segmentation import SegmentationError, measure
from microplastics.structures import rle as runs
from microplastics.utils.errors import UserError
from microplastics.utils.io import atomic_write

# Particles of one image: beyond it the file is a photograph, or noise.
MAX_INSTANCES = 50_000
# Pillow's modes whose pixels are the numbers themselves; those of P are indices of a palette.
_PLAIN_MODES = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L", "F")
_LOSSY = ("JPEG", "JPEG2000", "WEBP")
_VOID, _VOID_COLOUR = 255, [224, 224, 192]
_WHITE_IS_ZERO, _PHOTOMETRIC = 0, 262
_TOO_MANY = (
    "has {} particles or more, which a photograph or noise has but no mask; put label images or "
    "binary masks there"
)


def read_label_image(
    path: str | os.PathLike, max_pixels: int | None = None
) -> tuple[np.ndarray, bool]:
    """Read a PNG, TIFF, BMP, GIF or PPM of whole numbers as it is stored.

    Of a palette the indices are taken, whatever colours they stand for, and the 255 that VOC
    paints around its objects is background. A colour becomes R * 65536 + G * 256 + B; an alpha
    channel is dropped. Float pixels must be whole numbers, as ImageJ's label maps are.

    Args:
        path: the file.
        max_pixels: more are refused before they are decoded; ``data.images.MAX_PIXELS`` if None.

    Returns:
        (H, W) array of integers from 0 up, and whether the file is in colour.

    Raises:
        UserError: the file is missing, broken, too large, compressed with loss, of several
            pages, or holds numbers that are negative or not whole.
    """
    path = os.fspath(path)
    with open_image(path, max_pixels) as image:
        if image is not None and image.format in _LOSSY:
            raise UserError(
                f"{path} is compressed with loss, which changes the numbers of particles; save "
                "masks as PNG or TIFF."
            )
        if image is None or image.format == "TIFF":
            array = _read_tiff(path, max_pixels, image)
        elif is_deep_png(image):
            array = decode_with_opencv(path)
        else:
            array = _read_pillow(image)
        return _whole_numbers(array, path)


def instance_rles(labels: np.ndarray) -> tuple[list[int], list[dict[str, Any]], np.ndarray]:
    """Give the mask of every number in a label image, in one pass over it.

    Args:
        labels: (H, W) integers, 0 background.

    Returns:
        the numbers in ascending order, their compressed COCO RLEs (``counts`` as str), and their
        areas in px.

    Raises:
        ValueError: there are more than ``MAX_INSTANCES``.
    """
    size = [int(side) for side in labels.shape]
    line = labels.ravel(order="F")
    edges = np.flatnonzero(line[1:] != line[:-1]) + 1
    starts = np.concatenate(([0], edges))
    values = line[starts]
    lengths = np.diff(starts, append=line.size)
    kept = np.flatnonzero(values)
    kept = kept[np.argsort(values[kept], kind="stable")]
    if not len(kept):
        return [], [], np.zeros(0, np.int64)
    values, starts, lengths = values[kept], starts[kept], lengths[kept]
    first = np.flatnonzero(np.concatenate(([True], values[1:] != values[:-1])))
    if len(first) > MAX_INSTANCES:
        raise ValueError(_TOO_MANY.format(MAX_INSTANCES))
    counts = [
        runs.counts_of_runs(begin, begin + length, line.size)
        for begin, length in zip(
            np.split(starts, first[1:]), np.split(lengths, first[1:]), strict=True
        )
    ]
    texts = runs.encode_counts_batch(counts)
    rles = [{"size": list(size), "counts": text.decode("ascii")} for text in texts]
    return values[first].tolist(), rles, np.add.reduceat(lengths, first)


def connected_parts(mask: np.ndarray) -> np.ndarray:
    """Number the 8-connected parts of a mask from 1, as (H, W) int32.

    Raises:
        ValueError: there are more than ``MAX_INSTANCES``.
    """
    count, labels = cv2.connectedComponents((mask != 0).astype(np.uint8), connectivity=8)
    if count - 1 > MAX_INSTANCES:
        raise ValueError(_TOO_MANY.format(MAX_INSTANCES))
    return labels


def _read_pillow(image: Image.Image) -> np.ndarray:
    if getattr(image, "n_frames", 1) > 1:
        raise ValueError(f"it has {image.n_frames} frames; save each as a file of its own")
    if image.mode == "LA":
        image = image.getchannel(0)
    elif image.mode == "PA":
        raise ValueError("a palette with transparency; save it without")
    elif image.mode in ("RGB", "RGBA", "RGBX"):
        return np.asarray(image)[:, :, 2::-1]
    elif image.mode not in _PLAIN_MODES:
        raise ValueError(f"its mode {image.mode} is not one of masks; save it as grey PNG")
    array = np.asarray(image)
    palette = image.getpalette("RGB") if image.mode == "P" else None
    if palette is not None and palette[3 * _VOID : 3 * _VOID + 3] == _VOID_COLOUR:
        array = np.where(array == _VOID, 0, array)
    return array


def _read_tiff(path: str, max_pixels: int | None, image: Image.Image | None) -> np.ndarray:
    import tifffile  # slow to import and seldom needed

    with tifffile.TiffFile(path) as tiff:
        if len(tiff.pages) > 1:
            raise ValueError(f"it has {len(tiff.pages)} pages; save each as a file of its own")
        page = tiff.pages[0]
        check_pixels(path, page.imagewidth, page.imagelength, max_pixels)
        if page.samplesperpixel > 4 or page.imagedepth != 1:
            raise ValueError(f"it has {page.samplesperpixel} channels and depth {page.imagedepth}")
        ends = [sum(each) for each in zip(page.dataoffsets, page.databytecounts, strict=True)]
        if max(ends, default=0) > os.path.getsize(path):
            raise ValueError("the file ends before its pixels do")
        try:
            array = page.asarray()
        except ValueError:
            # Without the package imagecodecs tifffile has no LZW; Pillow has.
            if image is None:
                raise
            array = _read_pillow(image)
            if image.mode in ("1", "L") and page.photometric == _WHITE_IS_ZERO:
                array = (255 if image.mode == "L" else 1) - array.astype(np.uint8)
            return array
        if array.ndim == 3 and int(page.planarconfig) == 2:
            array = array.transpose(1, 2, 0)
        if array.shape[:2] != (page.imagelength, page.imagewidth):
            raise ValueError("its pixels do not fill its size")
    return array[:, :, 2::-1] if array.ndim == 3 and array.shape[2] >= 3 else array


def _whole_numbers(array: np.ndarray, path: str) -> tuple[np.ndarray, bool]:
    """Turn grey (H, W), grey with alpha, or BGR pixels into numbers from 0 up."""
    colour = False
    if array.ndim == 3 and array.shape[2] < 3:
        array = array[:, :, 0]
    if array.ndim == 3:
        blue, green, red = (array[:, :, channel] for channel in range(3))
        if np.array_equal(blue, green) and np.array_equal(green, red):
            array = blue
        elif array.dtype != np.uint8:
            raise ValueError("it has colours of more than 8 bits; save it as grey PNG or TIFF")
        else:
            colour = True
            array = red.astype(np.int32) << 16 | green.astype(np.int32) << 8 | blue
    if array.dtype.kind == "b":
        array = array.astype(np.uint8)
    if array.dtype.kind == "f":
        array = array.astype(np.float64)
        with np.errstate(invalid="ignore"):
            whole = (array == np.rint(array)) & (np.abs(array) < 2**31)  # False for NaN
        if not whole.all():
            raise UserError(f"{path} has pixels that are not whole numbers; save a label image.")
        array = array.astype(np.int64)
    if array.dtype.kind not in "iu":
        raise ValueError(f"its pixels are of type {array.dtype}")
    if array.dtype.kind == "i" and array.size and array.min() < 0:
        raise UserError(
            f"{path} has negative pixels ({array.min()}); number particles from 1, background 0."
        )
    if array.dtype.itemsize > 4 and array.size and array.max() >= 2**53:
        raise UserError(f"{path} has the number {array.max()}; number the particles from 1.")
    return array, colour


__all__ = ["NAME", "looks_like", "open_dataset", "write_dataset"]

NAME = "masks"
DEFAULT_CLASS = "particle"

_KINDS = {
    "ids": "label images, each number one instance",
    "binary": "binary images, each 8-connected part one instance",
    "values": "label images of classes by classes.csv, each 8-connected part one instance",
    "instance": "one file an instance",
    "class": "one file a class, each 8-connected part one instance",
}


def looks_like(path: Path) -> bool:
    """Whether a folder holds images with masks, by the names of its folders and files."""
    try:
        return looks_like_masks(Path(path))
    except (OSError, UserError, ValueError):
        return False


def open_dataset(path: Path, options: ReadOptions, notes: Notes) -> dict[str, Source]:
    """Open a folder of images and masks.

    Which kind of masks there is, is found out from names and values and stated in a note. A file
    that bears the image's name is a label image, unless all such files have one value beside 0:
    then they are binary. Masks become RLE with every pixel of theirs; parts touch at corners too.

    Args:
        path: folder (see ``masks_layout.find_folders``).
        options: how to read; ``images`` is the folder of the images, if not there.
        notes: takes what is found out, changed or left out.

    Returns:
        split -> source; ``"all"`` where there are no splits.

    Raises:
        UserError: there are no masks, or a file that cannot be used.
    """
    path = Path(path)
    if not path.is_dir():
        raise UserError(f"{path} is not a folder; give the one with images and masks.")
    folders = find_mask_folders(path)
    if options.images is not None:
        if len(folders) > 1:
            raise UserError(f"{path} has splits, each with images; leave --images away.")
        folders = {"all": Folders(Path(options.images), folders["all"].masks)}
    sources = {}
    for split, pair in folders.items():
        reader = _Reader(pair, options, notes)
        sources[split] = layout.make_source(
            pair.images, reader.classes, reader.read, notes, len(reader.names.file_names)
        )
    return sources


class _Reader:
    """One split: which masks belong to which image, and what they mean."""

    def __init__(self, folders: Folders, options: ReadOptions, notes: Notes):
        self.folders, self._options = folders, options
        self.names = ImageNames(folders)
        if not self.names.file_names:
            raise UserError(f"{folders.images} holds no image; put the photographs there.")
        self._by_image = self._match(notes)
        self._table, lost = read_class_table(folders, self.names)
        for where in lost:
            notes.add("label_without_image", where)
        self._check_mixed()
        self._kind = self._find_kind()
        kinds = {mask.kind for masks in self._by_image.values() for mask in masks} - {"image"}
        found = sorted(_KINDS[kind] for kind in kinds | ({self._kind} if self._kind else set()))
        notes.add("mask_kind", str(folders.masks), "; ".join(found))
        if self._table is not None and self._kind not in ("ids", "values"):
            notes.add("field_unknown", str(find_beside(folders, CLASSES_CSV)), "no label images")
        self.classes = self._class_names()

    def _match(self, notes: Notes) -> dict[str, list[MaskFile]]:
        together = self.folders.images == self.folders.masks
        by_image = defaultdict(list)
        for path in layout.walk(self.folders.masks):
            suffix = path.suffix.lower()
            if suffix not in IMAGE_SUFFIXES or (together and not is_marked(path)):
                continue
            name = path.relative_to(self.folders.masks).as_posix()
            found = self.names.match(path, name)
            if found is None:
                error = UserError(
                    f"{path} belongs to no image in {self.folders.images}; call it IMAGE.png, "
                    "IMAGE_3.png or IMAGE_Fiber.png after its image, or delete it."
                )
                layout.skip_or_raise(error, "label_without_image", name, self._options, notes)
            else:
                by_image[found[0]].append(found[1])
        if not by_image:
            raise UserError(
                f"{self.folders.masks} holds no mask for the images in {self.folders.images}; "
                "name PNG or TIFF files after their images."
            )
        return dict(by_image)

    def _check_mixed(self) -> None:
        for masks in self._by_image.values():
            whole = [mask for mask in masks if mask.kind == "image"]
            if whole and len(masks) > 1:
                other = next(mask for mask in masks if mask is not whole[0])
                raise UserError(
                    f"{whole[0].path} and {other.path} are both masks of one image; keep either "
                    "the one of the whole image or those of its instances or classes."
                )

    def _find_kind(self) -> str | None:
        """What numbers in the files that bear an image's name mean; None without such files."""
        whole = [
            masks[0].path for _, masks in sorted(self._by_image.items()) if masks[0].kind == "image"
        ]
        if not whole:
            return None
        if self._table is not None:
            return "values" if self._table.by_value else "ids"
        seen = 0
        for path in whole:
            try:
                labels, _ = read_label_image(path, self._options.max_pixels)
            except UserError:
                continue  # raised or noted when the image's turn comes
            high = int(labels.max(initial=0))
            # All that is neither 0 nor the highest number, nor the one seen before.
            if high and (seen not in (0, high) or ((labels != 0) & (labels != high)).any()):
                return "ids"
            seen = seen or high
        return "binary"

    def _class_names(self) -> list[str]:
        found = {
            mask.category or DEFAULT_CLASS
            for masks in self._by_image.values()
            for mask in masks
            if mask.kind != "image"
        }
        if self._kind is not None:
            found.update([DEFAULT_CLASS] if self._table is None else self._table.classes)
        listed = read_class_list(self.folders)
        return [*listed, *sorted(found - set(listed))]

    def read(self, notes: Notes) -> Iterator[ImageRecord]:
        """Read one image's masks after the other's."""
        for file_name in self.names.file_names:
            masks = self._by_image.get(file_name, [])
            if not masks:
                notes.add("image_unlabelled", file_name)
            code = "image_broken"
            try:
                path = self.folders.images / file_name
                size, rotated = image_header(path, self._options.max_pixels)
                instances = []
                for mask in masks:
                    code = "label_broken"
                    labels, colour = read_label_image(mask.path, self._options.max_pixels)
                    if labels.shape != size[::-1]:
                        claimed = labels.shape[::-1]
                        words = size_mismatch(size, claimed, rotated).replace(
                            "the JSON says", f"its mask {mask.path} is"
                        )
                        raise layout.ImageSizeError(f"{path} {words}.")
                    if colour and mask.kind == "image" and self._kind == "ids":
                        notes.add("mask_colours", mask.name)
                    instances += self._instances(file_name, mask, labels, notes)
            except UserError as error:
                layout.skip_or_raise(error, code, file_name, self._options, notes)
                continue
            yield ImageRecord(file_name, *size, instances)

    def _instances(
        self, file_name: str, mask: MaskFile, labels: np.ndarray, notes: Notes
    ) -> list[Instance]:
        try:
            if mask.kind == "image" and self._kind == "ids":
                return self._numbered(file_name, mask, labels, notes)
            if mask.kind == "image" and self._kind == "values":
                return self._by_value(mask, labels, notes)
            category = mask.category or DEFAULT_CLASS
            values = _values(labels)
            if mask.kind == "instance":
                if len(values) > 1:
                    raise UserError(
                        f"{mask.path} has the values {values[:4]} beside 0, but is one instance "
                        "by its name; write it with one value, or call a label image as its image."
                    )
                if not values:
                    notes.add("shape_without_area", mask.name, "no pixel")
                    return []
                _, rles, _ = instance_rles(labels)
                return [Instance(category, rles[0], mask.name)]
            if len(values) > 1:
                notes.add("mask_numbered", mask.name)
                return [
                    Instance(category, rle, f"{mask.name}, id {number}")
                    for number, rle, _ in zip(*instance_rles(labels), strict=True)
                ]
            return _parts(category, mask, labels, notes)
        except ValueError as error:
            raise UserError(f"{mask.path} {error}.") from error

    def _numbered(
        self, file_name: str, mask: MaskFile, labels: np.ndarray, notes: Notes
    ) -> list[Instance]:
        table = self._table or ClassTable()
        rows = dict(table.by_id.get(file_name, {}))
        default = DEFAULT_CLASS if self._table is None else None
        instances = []
        for number, rle, _ in zip(*instance_rles(labels), strict=True):
            where = f"{mask.name}, id {number}"
            category, iscrowd = rows.pop(number, (default, 0))
            if category is None:
                notes.add("shape_unlabelled", where)
                continue
            instances.append(Instance(category, rle, where, iscrowd))
        for number in rows:
            notes.add("id_absent", f"{mask.name}, id {number}")
        return instances

    def _by_value(self, mask: MaskFile, labels: np.ndarray, notes: Notes) -> list[Instance]:
        table = self._table or ClassTable()
        instances = []
        for value in _values(labels):
            category = table.by_value.get(value)
            if category is None:
                notes.add("shape_unlabelled", f"{mask.name}, value {value}")
                continue
            instances += _parts(category, mask, labels == value, notes)
        return instances


def _parts(category: str, mask: MaskFile, labels: np.ndarray, notes: Notes) -> list[Instance]:
    instances = []
    for number, rle, area in zip(*instance_rles(connected_parts(labels)), strict=True):
        where = f"{mask.name}, {category}, part {number}"
        if area == 1:
            notes.add("mask_speck", where)
        instances.append(Instance(category, rle, where))
    return instances


def _values(labels: np.ndarray) -> list[int]:
    """The numbers beside 0 in a label image, ascending."""
    if labels.dtype == np.uint8:
        found = np.flatnonzero(np.bincount(labels.reshape(-1), minlength=256))
    else:
        found = np.unique(labels)
    return found[found != 0].tolist()


_COMPRESSION = "zlib"  # which every TIFF reader has, unlike zstd


def write_dataset(sources: dict[str, Source], output: Path, notes: Notes) -> list[Path]:
    """Write one label image a picture: ``output/SPLIT/masks/NAME.tif``, int32, zlib.

    Particles are numbered from 1 in their order. ``classes.csv`` beside ``masks`` has ``image``,
    ``id``, ``class`` and ``iscrowd`` of each, ``classes.txt`` the classes in their order. Where
    particles overlap the later one has the pixels; a particle that has none left has no row.

    Args:
        sources: split -> images.
        output: folder; the image of ``file_name`` belongs at ``output/SPLIT/images/file_name``.
        notes: takes ``overlap_lost``, ``instance_lost`` and ``extra_lost``.

    Returns:
        the files written.

    Raises:
        UserError: a file cannot be written, a file name leaves the folder, or two images would
            share a label image.
    """
    written = []
    for split, source in sources.items():
        folder, taken = Path(output, split), {}
        with atomic_write(folder / "classes.csv") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(("image", "id", "class", "iscrowd"))
            progress = tqdm(
                source.records(), split, source.num_images, unit="image", disable=None, leave=False
            )
            for record in progress:
                name = safe_name(record.file_name, f"An image of {split}")
                key = f"{PurePosixPath(name).with_suffix('')}.tif"
                other = taken.setdefault(key.lower(), name)
                if other != name:
                    raise UserError(
                        f"{name} and {other} of {split} would share the label image {key}; rename "
                        "one of them."
                    )
                path = folder / "masks" / key
                labels, kept = _label_image(record, notes)
                content = io.BytesIO()
                tifffile.imwrite(content, labels, compression=_COMPRESSION, metadata=None)
                with atomic_write(path, "wb") as image:
                    image.write(content.getbuffer())
                table.writerows((name, *row) for row in kept)
                written.append(path)
        with atomic_write(folder / "classes.txt") as file:
            file.writelines(f"{category}\n" for category in source.classes)
        written += [folder / "classes.csv", folder / "classes.txt"]
    return written


def _label_image(
    record: ImageRecord, notes: Notes
) -> tuple[np.ndarray, list[tuple[int, str, int]]]:
    """Paint the particles of an image, and give id, class and iscrowd of those that show."""
    height, width = record.height, record.width
    if height * width > MAX_PIXELS:
        raise UserError(
            f"{record.file_name} is {width} x {height} px, above the limit of {MAX_PIXELS} pixels "
            "of a label image; cut it into smaller ones."
        )
    labels = np.zeros((height, width), dtype=np.int32)
    areas = [0]
    for number, (instance, crop, x0, y0) in enumerate(_crops(record, notes), 1):
        labels[y0 : y0 + crop.shape[0], x0 : x0 + crop.shape[1]][crop] = number
        areas.append(int(np.count_nonzero(crop)))
        for key in instance.extra:
            notes.add("extra_lost", instance.where, show(key))
    for key in record.extra:
        notes.add("extra_lost", record.file_name, show(key))
    rows = []
    shown = np.bincount(labels.reshape(-1), minlength=len(areas)).tolist()
    for number, instance in enumerate(record.instances, 1):
        if shown[number] < areas[number]:
            detail = f"{areas[number] - shown[number]} of {areas[number]} px"
            notes.add("overlap_lost", instance.where, detail)
        if shown[number]:
            rows.append((number, instance.category, instance.iscrowd))
        elif areas[number]:
            notes.add("instance_lost", instance.where, "wholly under later ones")
    return labels, rows


def _crops(record: ImageRecord, notes: Notes) -> Iterator[tuple[Instance, np.ndarray, int, int]]:
    """The pixels of each instance in its own box; none, and a note, where it has no pixel."""
    height, width = record.height, record.width
    texts = [_rle_text(instance, height, width, notes) for instance in record.instances]
    counts = runs.decode_counts_batch(texts)
    for instance, lengths in zip(record.instances, counts, strict=True):
        yield instance, *runs.crop_of_runs(*runs.runs_of_counts(lengths), height)


def _rle_text(instance: Instance, height: int, width: int, notes: Notes) -> bytes | str:
    """Compressed run lengths of an instance; empty, and a note, where it cannot be painted."""
    try:
        measured = measure(instance.segmentation, height, width)
    except SegmentationError as error:
        notes.add("instance_lost", instance.where, error.detail or error.code)
        return b""
    if measured.subpixel:
        notes.add("instance_lost", instance.where, "no pixel")
    mask = measured.segmentation
    if isinstance(mask, list):
        rles = mask_util.frPyObjects(mask, height, width)
        mask = rles[0] if len(rles) == 1 else mask_util.merge(rles)
    return mask["counts"]
