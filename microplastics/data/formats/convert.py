"""Exporting a COCO data set into another format, with its images, in one call."""

import difflib
import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from microplastics import __version__
from microplastics.data.coco import show
from microplastics.data.formats import coco, labelme, layout, masks, registry, yolo
from microplastics.data.formats.base import (
    NOTES,
    ImageRecord,
    Instance,
    Notes,
    ReadOptions,
    Source,
    measured_segmentation,
)
from microplastics.data.formats.layout import (
    PLACES,
    checked_size,
    is_printable,
    place_image,
    safe_name,
    skip_or_raise,
)
from microplastics.data.images import image_header, size_mismatch
from microplastics.data.segmentation import read_json, segmentation_to_polygons
from microplastics.utils.errors import UserError
from microplastics.utils.io import atomic_write, write_json

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
        """``JSON:IMAGES`` for ``DATASETS.TRAIN`` and the commands."""
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


@dataclass
class Conversion:
    """What :func:`convert_dataset` did.

    Attributes:
        format: name of the format that was read.
        written: one entry a split.
        notes: what was changed and left out.
    """

    format: str
    written: list[Written]
    notes: Notes


def convert_dataset(
    path: Path,
    output: Path,
    format: str | None = None,
    *,
    categories: str | None = None,
    place: str = "keep",
    options: ReadOptions | None = None,
) -> Conversion:
    """Convert a data set; see :func:`microplastics.data.formats.convert.write_dataset`.

    Args:
        path: file or folder of the data set.
        output: folder of the canonical data set, outside of ``path``.
        format: one of ``registry.READERS``; found out if None, except ``"blanks"``.
        categories: ``old=New,other=New,third=``.
        place: ``"keep"``, ``"copy"`` or ``"link"`` the images.
        options: how to read.

    Raises:
        UserError: the data set cannot be read or written.
    """
    path, output, options = Path(path), Path(output), options or ReadOptions()
    if path.is_dir() and output.resolve().is_relative_to(path.resolve()):
        raise UserError(
            f"--output {output} lies in --input {path}, where the next run would read it; choose "
            "a folder outside of it."
        )
    if options.line_width is not None and not 0 < options.line_width < 1e4:
        raise UserError(f"--line-width is {options.line_width}; give a width in px above 0.")
    if options.classes is not None and format != "blanks":
        raise UserError(
            "--classes names those of blanks alone; use --categories, or --from blanks."
        )
    if categories is not None and format == "blanks":
        raise UserError("Blanks have no classes to rename; say which the set has with --classes.")
    renamed = None if categories is None else parse_categories(categories)
    notes = Notes(NOTES)
    name, sources = registry.open_dataset(path, options, notes, format)
    written = write_dataset(
        sources,
        output,
        notes,
        categories=renamed,
        place=place,
        options=options,
        about={"input": str(path.absolute()), "format": name},
        verbatim=name == "blanks",
    )
    return Conversion(name, written, notes)


def describe_conversion(conversion: Conversion) -> str:
    """Say in a table, the notes, and an entry a split, what was converted."""
    classes = list(conversion.written[0].instances)
    rows = [["split", "images", "blank", *classes]]
    for one in conversion.written:
        counts = [one.num_images, one.num_blank, *one.instances.values()]
        rows.append([one.split, *map(str, counts)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [f"format: {conversion.format}"]
    for row in rows:
        cells = (cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
        lines.append("  ".join([row[0].ljust(widths[0]), *cells]))
    if len(conversion.notes):
        lines += ["changed or left out (all in conversion.json):"]
        lines += [f"  {line}" for line in conversion.notes.lines()]
    lines += [f"{one.split}: {one.entry}" for one in conversion.written]
    whole = [one for one in conversion.written if one.split == "all"]
    lines += [
        f"Not split yet: microplastics split --input {one.json_file} --images "
        f"{one.image_root} --output SPLITS"
        for one in whole
    ]
    return "\n".join(lines)


EXPORT_MANIFEST = "export.json"
EXPORT_PLACES = ("copy", "link", "none")
# Where each format looks for the images of a split; the writer of COCO places its own.
_IMAGES = {"yolo": "images/{}", "labelme": "{}", "masks": "{}/images"}
FORMATS = (*_IMAGES, "coco")


@dataclass
class Exported:
    """One split that was exported: images, blanks among them, and instances by class."""

    num_images: int = 0
    num_blank: int = 0
    instances: Counter[str] = field(default_factory=Counter)

    def counts(self) -> dict[str, Any]:
        """The numbers, for ``export.json``."""
        return {
            "images": self.num_images,
            "blank": self.num_blank,
            "instances": dict(self.instances),
        }


@dataclass
class Export:
    """What :func:`export_dataset` did.

    Attributes:
        format: the one written.
        output: its folder.
        splits: what was read of each split.
        notes: what was changed on the way and what the format cannot hold.
        files: how many annotation files were written.
    """

    format: str
    output: Path
    splits: dict[str, Exported]
    notes: Notes
    files: int


def export_dataset(
    path: Path,
    output: Path,
    format: str,
    *,
    place: str = "copy",
    polygons: bool = False,
    options: ReadOptions | None = None,
) -> Export:
    """Export a COCO JSON, or a folder with several splits, and write ``export.json``.

    Args:
        path: JSON, or folder of a data set, as ``microplastics convert`` writes it or another
            COCO export.
        output: folder that is new, empty, or was left by a killed run of the same export.
        format: one of ``FORMATS``.
        place: ``"copy"`` or ``"link"`` the images to where the format wants them, or ``"none"``.
        polygons: outline RLE masks along their pixels, except for crowds.
        options: how to read.

    Raises:
        UserError: the data set cannot be read, an image is missing or of another size, or the
            output cannot be written or holds something else.
    """
    path, output = Path(path), Path(output)
    _check_request(path, output, format, place)
    notes, options = Notes(NOTES), options or ReadOptions()
    sources = _open(path, options, notes)
    manifest = {
        "version": __version__,
        "input": str(path.absolute()),
        "format": format,
        "place": place,
        "polygons": polygons,
        "skip_broken": options.skip_broken,
    }
    _claim_export(output, manifest)
    splits = {split: Exported() for split in sources}
    streams = {}
    for split, source in sources.items():
        target, checked = None, format == "coco" or place != "none"
        if place != "none" and format in _IMAGES:
            target = output / _IMAGES[format].format(split)
        one = splits[split]
        stream = _Stream(source, one, target, place, checked, options, polygons, notes)
        streams[split] = replace(source, records=stream.records)
    if format == "coco":
        coco_place = "keep" if place == "none" else place
        written = write_dataset(
            streams, output, notes, place=coco_place, options=options, verbatim=True
        )
    else:
        writer = {"yolo": yolo, "labelme": labelme, "masks": masks}[format]
        written = writer.write_dataset(streams, output, notes)
    manifest["splits"] = {split: one.counts() for split, one in splits.items()}
    write_json(
        output / EXPORT_MANIFEST, {**manifest, "complete": True, "notes": notes.as_dict()}, indent=1
    )
    return Export(format, output, splits, notes, len(written))


def _check_request(path: Path, output: Path, format: str, place: str) -> None:
    if format not in FORMATS:
        raise UserError(f"No format {format!r} can be written; choose one of {', '.join(FORMATS)}.")
    if place not in EXPORT_PLACES:
        raise UserError(
            f"Images cannot be placed by {place!r}; choose one of " f"{', '.join(EXPORT_PLACES)}."
        )
    if not path.exists():
        raise UserError(f"{path} does not exist; correct --input.")
    if path.is_dir() and output.resolve().is_relative_to(path.resolve()):
        raise UserError(f"--output {output} lies in --input {path}; choose a folder outside of it.")


def describe_export(export: Export) -> str:
    """Say in words what was exported and what changed or was lost."""
    lines = []
    for split, one in export.splits.items():
        counts = ", ".join(f"{count} {name}" for name, count in one.instances.items())
        lines.append(
            f"{split}: {one.num_images} images ({one.num_blank} blank), "
            f"{one.instances.total()} instances{f' ({counts})' if counts else ''}"
        )
    if len(export.notes):
        lines.append(f"changed, or not held by {export.format} (all in {EXPORT_MANIFEST}):")
        lines += [f"  {line}" for line in export.notes.lines()]
    lines.append(f"{export.files} annotation files in {export.output}")
    return "\n".join(lines)


class _Stream:
    """Passes on the records of one split, counts them and puts their images in place."""

    def __init__(
        self,
        source: Source,
        exported: Exported,
        target: Path | None,
        place: str,
        checked: bool,
        options: ReadOptions,
        polygons: bool,
        notes: Notes,
    ):
        self._source, self._exported, self._target = source, exported, target
        self._place, self._checked, self._polygons = place, checked, polygons
        self._options, self._notes = options, notes

    def records(self) -> Iterator[ImageRecord]:
        """Read the source once."""
        exported = self._exported
        for record in self._source.records():
            image = self._source.image_root / record.file_name
            if self._checked:
                try:
                    self._check(image, record)
                except UserError as error:
                    code = "image_broken" if image.is_file() else "image_missing"
                    skip_or_raise(error, code, record.file_name, self._options, self._notes)
                    continue
            if self._target is not None:
                place_image(image, self._target / record.file_name, self._place)
            if self._polygons:
                record.instances = [
                    instance
                    for each in record.instances
                    for instance in self._outlined(each, record)
                ]
            exported.num_images += 1
            exported.num_blank += not record.instances
            exported.instances.update(instance.category for instance in record.instances)
            yield record

    def _check(self, image: Path, record: ImageRecord) -> None:
        if not image.is_file():
            raise UserError(
                f"{image} is missing; copy it there, say where the images are with --images, or "
                "leave it out with --skip-broken."
            )
        checked_size(image, (record.width, record.height), self._options)

    def _outlined(self, instance: Instance, record: ImageRecord) -> Iterator[Instance]:
        if isinstance(instance.segmentation, list) or instance.iscrowd:
            yield instance
            return
        rings = segmentation_to_polygons(
            instance.segmentation, record.height, record.width, self._notes, instance.where
        )
        if not rings:
            self._notes.add("instance_lost", instance.where, "no pixel")
            return
        yield replace(instance, segmentation=[ring.reshape(-1).tolist() for ring in rings])


def _open(path: Path, options: ReadOptions, notes: Notes) -> dict[str, Source]:
    """Open the data set; where a conversion left the images, they are found by its manifest."""
    manifest = path / MANIFEST
    if options.images is not None or not manifest.is_file():
        return coco.open_dataset(path, options, notes)
    roots = _image_roots(read_json(manifest, dict, "what a conversion writes; give --images"))
    jsons = layout.find_jsons(path)
    if not jsons or not set(jsons) <= set(roots):
        return coco.open_dataset(path, options, notes)
    return {
        split: coco.open_json(json_file, roots[split], options, notes)
        for split, json_file in jsons.items()
    }


def _image_roots(manifest: dict[str, Any]) -> dict[str, Path]:
    images = manifest.get("images")
    if manifest.get("place") != "keep" or not isinstance(images, dict):
        return {}
    return {split: Path(root) for split, root in images.items() if isinstance(root, str)}


def _claim_export(output: Path, manifest: dict[str, Any]) -> None:
    """Refuse to write among other files, or over another export."""
    path = output / EXPORT_MANIFEST
    claimed = {**manifest, "complete": False}
    if path.is_file():
        found = read_json(path, dict, "what an export writes; choose another --output")
        if found.get("complete"):
            raise UserError(f"{output} holds an export; delete it or choose another --output.")
        if found != claimed:
            raise UserError(
                f"{output} was begun otherwise (another input or option); delete it or choose "
                "another --output."
            )
    elif output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"{output} is there and not empty; choose another --output.")
    write_json(path, claimed, indent=1)
