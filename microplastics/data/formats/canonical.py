"""Writing the data set that everything else reads: COCO instance JSON and an image folder a split.

The JSON is written as the records come, so that memory does not grow with the annotations.
"""

import difflib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from microplastics import __version__
from microplastics.data.coco_findings import show
from microplastics.data.coco_load import read_json
from microplastics.data.formats.file_names import is_printable, safe_name
from microplastics.data.formats.notes import Notes
from microplastics.data.formats.placing import PLACES, place_image
from microplastics.data.formats.records import ImageRecord, Instance, ReadOptions, Source
from microplastics.data.formats.segmentations import measured_segmentation
from microplastics.data.images import image_header, size_mismatch
from microplastics.errors import UserError
from microplastics.files import atomic_write, write_json

MANIFEST = "conversion.json"
PROJECT_CLASSES = ("Fiber", "Fragment", "Film")
_IMAGE_FIELDS = frozenset(("id", "file_name", "width", "height"))
_ANNOTATION_FIELDS = frozenset(
    ("id", "image_id", "category_id", "bbox", "area", "iscrowd", "segmentation", "ignore")
)
_EXAMPLES = 5
_MAX_CLASSES = 10_000


@dataclass
class Written:
    """One split that was written.

    Attributes:
        split: train, val, test or all.
        json_file: its COCO JSON.
        image_root: folder of its images.
        num_images: images, blanks among them.
        num_blank: images without an annotation.
        instances: annotations of each class, crowds among them.
    """

    split: str
    json_file: Path
    image_root: Path
    num_images: int = 0
    num_blank: int = 0
    instances: dict[str, int] = field(default_factory=dict)

    @property
    def entry(self) -> str:
        """``JSON:IMAGES`` for ``DATASETS.TRAIN`` and the tools."""
        return f"{self.json_file}:{self.image_root}"

    def counts(self) -> dict[str, Any]:
        """The numbers, for ``conversion.json``."""
        return {
            "images": self.num_images,
            "blank": self.num_blank,
            "instances": self.instances,
        }


def write_dataset(
    sources: dict[str, Source],
    output: Path,
    notes: Notes,
    *,
    categories: dict[str, str] | None = None,
    place: str = "keep",
    options: ReadOptions | None = None,
    about: dict[str, Any] | None = None,
    verbatim: bool = False,
) -> list[Written]:
    """Write ``annotations/instances_{split}.json`` for every split, and ``conversion.json``.

    Boxes and areas are those of the masks. What a killed run left is finished by the next one of
    the same input; the output of another input is never overwritten.

    Args:
        sources: split -> what to write.
        output: folder of the data set.
        notes: takes what is changed and left out.
        categories: old class name -> new one, or ``""`` to leave its instances out; classes that
            are not in it keep their names.
        place: ``"keep"`` leaves the images where they are, ``"copy"`` and ``"link"`` put them
            into ``output/{split}/``.
        options: how the sources are read; ``skip_broken`` leaves out missing and broken images.
        about: further fields for ``conversion.json``, such as the format.
        verbatim: write the classes of the sources as they are, where else the project's three
            are written if they suffice, and a set without any annotation too.

    Returns:
        what was written, in the order of the sources.

    Raises:
        UserError: a class or file name cannot be used, images are missing, broken or of another
            size, no image or, unless ``verbatim``, no annotation is left, or the output holds
            other data.
    """
    output, options = Path(output), options or ReadOptions()
    if place not in PLACES:
        raise UserError(f"Images cannot be placed by {place!r}; choose one of {', '.join(PLACES)}.")
    renamed = _renamed(sources, categories or {}, notes)
    names = list(dict.fromkeys(name for name in renamed.values() if name))
    if not verbatim and set(names) <= set(PROJECT_CLASSES):
        names = list(PROJECT_CLASSES)
    manifest = {"version": __version__, **(about or {})}
    manifest |= _request(sources, place, categories, options)
    _claim(output, manifest)
    written = []
    for split, source in sources.items():
        one = _SplitWriter(split, source, output, place, options, notes).write(renamed, names)
        written += _kept(one, notes)
    _raise_if_empty(written, notes, verbatim)
    manifest |= {
        "complete": True,
        "splits": {one.split: one.counts() for one in written},
        "notes": notes.as_dict(),
    }
    write_json(output / MANIFEST, manifest, indent=1)
    return written


class _SplitWriter:
    """Writes the records of one split, and collects the images that cannot be used."""

    def __init__(
        self,
        split: str,
        source: Source,
        output: Path,
        place: str,
        options: ReadOptions,
        notes: Notes,
    ):
        self._source, self._place, self._options, self._notes = source, place, options, notes
        root = source.image_root if place == "keep" else output / split
        self._written = Written(split, output / "annotations" / f"instances_{split}.json", root)
        self._seen: dict[str, str] = {}
        self._images: list[str] = []
        self._bad: list[str] = []
        self._num_annotations = 0

    def write(self, renamed: dict[str, str], names: list[str]) -> Written:
        """Write the JSON, and the images where they are to be copied or linked.

        Args:
            renamed: class name of the source -> the one written, or ``""``.
            names: the class names by category id from 1.
        """
        written = self._written
        self._renamed, self._ids = renamed, {name: index + 1 for index, name in enumerate(names)}
        written.instances = dict.fromkeys(names, 0)
        with atomic_write(written.json_file) as file:
            head = {
                "info": {"description": f"Written by microplastics {__version__}"},
                "categories": [
                    {"id": id_, "name": name, "supercategory": ""}
                    for name, id_ in self._ids.items()
                ],
            }
            file.write(json.dumps(head)[:-1] + ', "annotations": [')
            for record in self._records():
                self._write_record(file, record)
            file.write('\n], "images": [' + ",".join(self._images) + "\n]}\n")
            if self._bad:
                more = "; …" if len(self._bad) > _EXAMPLES else ""
                raise UserError(
                    f"{len(self._bad)} images of {written.split} cannot be used: "
                    f"{'; '.join(self._bad[:_EXAMPLES])}{more}. Mend them, or leave them out with "
                    "--skip-broken."
                )
        return written

    def _records(self) -> Iterator[ImageRecord]:
        with tqdm(
            self._source.records(),
            total=self._source.num_images,
            desc=self._written.split,
            unit="image",
            disable=None,
        ) as records:
            yield from records

    def _write_record(self, file: IO[str], record: ImageRecord) -> None:
        name = self._checked_name(record)
        problem = self._check_file(record, name)
        if problem is not None:
            code, words = problem
            if self._options.skip_broken:
                self._notes.add(code, name, words)
            else:
                self._bad.append(words)
            return
        if self._bad:  # nothing will come of it; go on to count what is wrong
            return
        self._seen[name] = record.file_name
        if self._place != "keep":
            target = self._written.image_root / name
            place_image(self._source.image_root / name, target, self._place)
        image_id = len(self._images) + 1
        fields = {
            **_further(record.extra, _IMAGE_FIELDS),
            "id": image_id,
            "file_name": name,
            "width": record.width,
            "height": record.height,
        }
        self._images.append("\n" + json.dumps(fields, allow_nan=False))
        before = self._num_annotations
        for instance in record.instances:
            self._write_instance(file, instance, record, image_id)
        self._written.num_images += 1
        self._written.num_blank += self._num_annotations == before

    def _write_instance(
        self, file: IO[str], instance: Instance, record: ImageRecord, image_id: int
    ) -> None:
        new = self._renamed[instance.category]
        if not new:
            self._notes.add("category_dropped", instance.where, show(instance.category))
            return
        measured = measured_segmentation(
            instance.segmentation, record.height, record.width, self._notes, instance.where
        )
        if measured is None:
            return
        if measured.subpixel:
            self._notes.add("shape_subpixel", instance.where)
        if new != instance.category:
            self._notes.add("category_renamed", instance.where, f"{show(instance.category)}")
        self._num_annotations += 1
        area = measured.area
        fields = {
            "id": self._num_annotations,
            "image_id": image_id,
            "category_id": self._ids[new],
            "bbox": list(measured.box),
            "area": int(area) if area == int(area) else area,
            "iscrowd": instance.iscrowd,
            "segmentation": measured.segmentation,
            **_further(instance.extra, _ANNOTATION_FIELDS),
        }
        comma = "," if self._num_annotations > 1 else ""
        file.write(f"{comma}\n{json.dumps(fields, allow_nan=False)}")
        self._written.instances[new] += 1

    def _checked_name(self, record: ImageRecord) -> str:
        where = f"An image of {self._written.split} in {self._source.image_root}"
        name = safe_name(record.file_name, where)
        if name in self._seen:
            twice = self._seen[name]
            same = "twice" if twice == record.file_name else f"also as {show(record.file_name)}"
            raise UserError(
                f"{where} is named {same}: {show(twice)}; join its annotations, or delete one of "
                "the two."
            )
        return name

    def _check_file(self, record: ImageRecord, name: str) -> tuple[str, str] | None:
        """Return code and words of what is wrong with an image file, or None."""
        path = self._source.image_root / name
        if not os.path.isfile(path):
            return "image_missing", f"no {path}"
        try:
            size, rotated = image_header(path, self._options.max_pixels)
        except UserError as error:
            return "image_broken", str(error).rstrip(".")
        expected = (record.width, record.height)
        if size != expected:
            return "image_size", f"{path} {size_mismatch(size, expected, rotated)}"
        return None


def parse_categories(text: str) -> dict[str, str]:
    """Read ``--categories``: ``old=New,other=New,third=`` (an empty one leaves the class out).

    Raises:
        UserError: it is written otherwise.
    """
    categories: dict[str, str] = {}
    for pair in text.split(","):
        old, equals, new = (part.strip() for part in pair.partition("="))
        if not old or not equals or old in categories:
            words = "names a class twice" if old in categories else "is not old=New,other=New"
            raise UserError(f"--categories {show(text)} {words}; write each class once, old=New.")
        categories[old] = new
    return categories


def _renamed(
    sources: dict[str, Source], categories: dict[str, str], notes: Notes
) -> dict[str, str]:
    """Return the new name, or ``""``, of every class of the sources, in their order."""
    classes = list(dict.fromkeys(name for source in sources.values() for name in source.classes))
    if len(classes) > _MAX_CLASSES:
        raise UserError(
            f"There are {len(classes)} classes, above {_MAX_CLASSES}; check that the labels are "
            "class names."
        )
    for old in categories:
        if old not in classes:
            close = difflib.get_close_matches(old, classes, n=3, cutoff=0.5)
            hint = f" Did you mean {' or '.join(map(show, close))}?" if close else ""
            known = ", ".join(map(show, classes[:20]))
            raise UserError(f"--categories names {show(old)}, but the classes are {known}.{hint}")
    renamed = {name: categories.get(name, name) for name in classes}
    for name in renamed.values():
        if name and not is_printable(name):
            raise UserError(f"{show(name)} cannot be a class name; rename it with --categories.")
    if classes and not any(renamed.values()):
        raise UserError("--categories leaves every class out; keep at least one.")
    return renamed


def _further(extra: dict[str, Any], standard: frozenset[str]) -> dict[str, Any]:
    return {key: value for key, value in extra.items() if key not in standard}


def _request(
    sources: dict[str, Source],
    place: str,
    categories: dict[str, str] | None,
    options: ReadOptions,
) -> dict[str, Any]:
    """What was asked for, as it stands in ``conversion.json``."""
    return {
        "images": {split: str(source.image_root.absolute()) for split, source in sources.items()},
        "place": place,
        "categories": categories or {},
        "options": {
            key: str(value) if isinstance(value, Path) else value
            for key, value in vars(options).items()
        },
    }


def _claim(output: Path, manifest: dict[str, Any]) -> None:
    """Refuse to write over what another conversion, or something else, wrote."""
    path = output / MANIFEST
    if path.exists():
        earlier = read_json(path, dict, "what a conversion writes; choose another --output")
        if earlier.get("images") != manifest["images"]:
            raise UserError(
                f"{output} holds the conversion of another input; delete it or choose another "
                "--output."
            )
    else:
        others = sorted((output / "annotations").glob("instances_*.json"))
        if others:
            raise UserError(
                f"{others[0]} is there and was not written by a conversion; choose another "
                "--output."
            )
    write_json(path, {**manifest, "complete": False}, indent=1)


def _kept(written: Written, notes: Notes) -> list[Written]:
    """The split that was written; none, and a note, where it has no image."""
    if written.num_images:
        return [written]
    written.json_file.unlink()
    notes.add("split_missing", written.split)
    return []


def _raise_if_empty(written: list[Written], notes: Notes, may_be_blank: bool) -> None:
    images = sum(one.num_images for one in written)
    if images and (may_be_blank or any(sum(one.instances.values()) for one in written)):
        return
    for one in written:
        one.json_file.unlink()
    what = f"No annotation is left of {images} images" if images else "No image is left"
    lines = "".join(f"\n  {line}" for line in notes.lines())
    mend = "check the export" + (", or read blanks with --from blanks" if images else "")
    raise UserError(f"{what}; {mend}{', and what was left out:' if lines else '.'}{lines}")
