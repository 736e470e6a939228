"""Masks as PNG or TIFF: label images, one binary file an instance, or one binary file a class.

Read by hand: what there are libraries for (Cellpose, VOC) is one layout each, and none of them
makes COCO RLE without a bitmap for every instance.
"""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from microplastics.data.formats import files
from microplastics.data.formats.file_names import IMAGE_SUFFIXES
from microplastics.data.formats.label_images import (
    connected_parts,
    instance_rles,
    read_label_image,
)
from microplastics.data.formats.masks_layout import (
    CLASSES_CSV,
    ClassTable,
    Folders,
    ImageNames,
    MaskFile,
    find_beside,
    find_folders,
    is_marked,
    looks_like_masks,
    read_class_list,
    read_class_table,
)
from microplastics.data.formats.masks_write import write_dataset
from microplastics.data.formats.notes import Notes
from microplastics.data.formats.records import ImageRecord, Instance, ReadOptions, Source
from microplastics.data.images import image_header, size_mismatch
from microplastics.errors import UserError

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
    folders = find_folders(path)
    if options.images is not None:
        if len(folders) > 1:
            raise UserError(f"{path} has splits, each with images; leave --images away.")
        folders = {"all": Folders(Path(options.images), folders["all"].masks)}
    sources = {}
    for split, pair in folders.items():
        reader = _Reader(pair, options, notes)
        sources[split] = files.make_source(
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
        for path in files.walk(self.folders.masks):
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
                files.skip_or_raise(error, "label_without_image", name, self._options, notes)
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
                        raise files.ImageSizeError(f"{path} {words}.")
                    if colour and mask.kind == "image" and self._kind == "ids":
                        notes.add("mask_colours", mask.name)
                    instances += self._instances(file_name, mask, labels, notes)
            except UserError as error:
                files.skip_or_raise(error, code, file_name, self._options, notes)
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
