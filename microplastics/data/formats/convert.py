"""Conversion of data sets to COCO, and their export to other formats."""

import difflib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from microplastics import __version__
from microplastics.data.coco import is_printable, show
from microplastics.data.formats import coco, labelme, layout, masks, yolo
from microplastics.data.formats.base import (
    ImageRecord,
    Instance,
    Notes,
    ReadOptions,
    Source,
    open_dataset,
)
from microplastics.data.formats.shapes import measured_segmentation
from microplastics.data.segmentation import segmentation_to_polygons
from microplastics.utils.errors import UserError
from microplastics.utils.io import atomic_write, read_json, write_json

MANIFEST, EXPORT_MANIFEST = layout.MANIFESTS
PROJECT_CLASSES = ("Fiber", "Fragment", "Film")
EXPORT_PLACES = ("copy", "link", "none")
# Format: where it has the images of a split.
_IMAGE_FOLDERS = {"yolo": "images/{}", "labelme": "{}", "masks": "{}/images"}
FORMATS = (*_IMAGE_FOLDERS, "coco")

_WRITERS = {"yolo": yolo.write, "labelme": labelme.write, "masks": masks.write}
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
        image_root: folder of its images.
        json_file: its COCO JSON, if it has one.
        num_images: images, blanks included.
        num_blank: images without an instance.
        instances: instances of each class, crowds included.
    """

    split: str
    image_root: Path
    json_file: Path | None = None
    num_images: int = 0
    num_blank: int = 0
    instances: dict[str, int] = field(default_factory=dict)

    @property
    def entry(self) -> str:
        """``JSON:IMAGES`` for ``DATASETS.TRAIN`` and the commands."""
        return f"{self.json_file}:{self.image_root}"

    def count(self, classes: list[str]) -> None:
        """Count an image with instances of these classes."""
        self.num_images += 1
        self.num_blank += not classes
        for name in classes:
            self.instances[name] = self.instances.get(name, 0) + 1

    def counts(self) -> dict[str, Any]:
        """Return the numbers, for the manifests."""
        return {"images": self.num_images, "blank": self.num_blank, "instances": self.instances}


@dataclass
class Conversion:
    """Result of :func:`convert_dataset`.

    Attributes:
        format: name of the format that was read.
        written: one entry a split.
        notes: what was changed and left out.
    """

    format: str
    written: list[Written]
    notes: Notes


@dataclass
class Export:
    """Result of :func:`export_dataset`.

    Attributes:
        format: name of the format that was written.
        output: its folder.
        splits: images and instances of each split that was read.
        notes: what was changed, and what the format cannot hold.
        files: number of annotation files.
    """

    format: str
    output: Path
    splits: dict[str, Written]
    notes: Notes
    files: int


def convert_dataset(
    path: Path,
    output: Path,
    format: str | None = None,
    *,
    categories: str | None = None,
    place: str = "keep",
    options: ReadOptions | None = None,
) -> Conversion:
    """Convert a data set in any format to COCO; see :func:`write_dataset`.

    Args:
        path: file or folder of the data set.
        output: folder of the new data set, outside of ``path``.
        format: one of ``base.READERS``; detected if None, except ``"blanks"``.
        categories: ``old=New,other=New,third=``.
        place: ``"keep"``, ``"copy"`` or ``"link"`` the images.
        options: how to read.

    Raises:
        UserError: the data set cannot be read or written.
    """
    path, output, options = Path(path), Path(output), options or ReadOptions()
    _check_output(path, output)
    _check_options(options, categories, format)
    renamed = None if categories is None else parse_categories(categories)
    notes = Notes()
    name, sources = open_dataset(path, options, notes, format)
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
    polygons: bool = False,
) -> list[Written]:
    """Write ``annotations/instances_{split}.json`` for every split, and ``conversion.json``.

    Boxes and areas are measured from the masks. After a killed run the same input is written
    again; the output of another input is never overwritten.

    Args:
        sources: split -> images.
        output: folder of the data set.
        notes: takes what is changed and left out.
        categories: old class name -> new one, or ``""`` to leave its instances out; other classes
            keep their names.
        place: ``"keep"`` leaves the images in their folder, ``"copy"`` and ``"link"`` put them
            into ``output/{split}/``.
        options: ``skip_broken`` leaves out missing and broken images.
        about: further fields of ``conversion.json``, such as the format.
        verbatim: write exactly the classes of the sources, which may have no annotation;
            otherwise the project's three classes are written if they are enough.
        polygons: outline RLE masks along their pixels, except crowds.

    Returns:
        the splits written, in the order of the sources.

    Raises:
        UserError: a class or file name cannot be used, images are missing, broken or of another
            size, no image or, unless ``verbatim``, no annotation is left, or the output has other
            data.
    """
    output, options = Path(output), options or ReadOptions()
    _check_choice("place of images", place, layout.PLACES)
    renamed = _renamed(sources, categories or {}, notes)
    names = list(dict.fromkeys(name for name in renamed.values() if name))
    if not verbatim and set(names) <= set(PROJECT_CLASSES):
        names = list(PROJECT_CLASSES)
    manifest = {
        "version": __version__,
        **(about or {}),
        "images": {split: str(source.image_root.absolute()) for split, source in sources.items()},
        "place": place,
        "categories": categories or {},
        "options": {
            key: str(value) if isinstance(value, Path) else value
            for key, value in vars(options).items()
        },
    }
    _claim_conversion(output, manifest)
    written = []
    for split, source in sources.items():
        root = source.image_root if place == "keep" else output / split
        one = Written(split, root, output / "annotations" / f"instances_{split}.json")
        stream = _Usable(one, source, place, options, notes, polygons)
        _CocoWriter(one, renamed, names, notes).write(stream.records())
        if one.num_images:
            written.append(one)
        else:
            one.json_file.unlink()
            notes.add("split_missing", split)
    _check_not_empty(written, notes, verbatim)
    splits = {one.split: one.counts() for one in written}
    manifest |= {"complete": True, "splits": splits, "notes": notes.as_dict()}
    write_json(output / MANIFEST, manifest, indent=1)
    return written


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
        path: JSON, or folder of a data set, as :func:`convert_dataset` or another tool writes it.
        output: folder that is new, empty, or left by a killed run of the same export.
        format: one of ``FORMATS``.
        place: ``"copy"`` or ``"link"`` the images into the folders of the format, or ``"none"``.
        polygons: outline RLE masks along their pixels, except crowds.
        options: how to read.

    Raises:
        UserError: the data set cannot be read, an image is missing or of another size, or the
            output cannot be written or has something else.
    """
    path, output, options = Path(path), Path(output), options or ReadOptions()
    _check_choice("format", format, FORMATS, "format_unknown")
    _check_choice("place of images", place, EXPORT_PLACES)
    if not path.exists():
        raise UserError(f"{path} does not exist; correct --input.", code="file_missing")
    _check_output(path, output)
    notes = Notes()
    sources = coco.read(path, options, notes, _image_roots(path, options))
    manifest = {
        "version": __version__,
        "input": str(path.absolute()),
        "format": format,
        "place": place,
        "polygons": polygons,
        "skip_broken": options.skip_broken,
    }
    _claim_export(output, manifest)
    if format == "coco":
        how = {"options": options, "verbatim": True, "polygons": polygons}
        coco_place = "keep" if place == "none" else place
        splits = write_dataset(sources, output, notes, place=coco_place, **how)
        for one in splits:
            one.instances = {name: count for name, count in one.instances.items() if count}
        num_files = len(splits)
    else:
        splits, streams = [], {}
        for split, source in sources.items():
            one = Written(split, output / _IMAGE_FOLDERS[format].format(split))
            stream = _Usable(one, source, place, options, notes, polygons)
            splits.append(one)
            streams[split] = replace(source, records=stream.counted)
        num_files = len(_WRITERS[format](streams, output, notes))
    counts = {one.split: one.counts() for one in splits}
    manifest |= {"splits": counts, "complete": True, "notes": notes.as_dict()}
    write_json(output / EXPORT_MANIFEST, manifest, indent=1)
    return Export(format, output, {one.split: one for one in splits}, notes, num_files)


def describe_conversion(conversion: Conversion) -> str:
    """Return a table of the splits, the notes, and an entry for each split."""
    rows = [["split", "images", "blank", *conversion.written[0].instances]]
    for one in conversion.written:
        counts = [one.num_images, one.num_blank, *one.instances.values()]
        rows.append([one.split, *map(str, counts)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [f"format: {conversion.format}"]
    for row in rows:
        cells = (cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
        lines.append("  ".join([row[0].ljust(widths[0]), *cells]))
    lines += _note_lines(conversion.notes, f"changed or left out (all in {MANIFEST}):")
    lines += [f"{one.split}: {one.entry}" for one in conversion.written]
    lines += [
        f"Not split yet: microplastics split --input {one.json_file} --images "
        f"{one.image_root} --output SPLITS"
        for one in conversion.written
        if one.split == "all"
    ]
    return "\n".join(lines)


def describe_export(export: Export) -> str:
    """Return a line for each split, the notes, and the number of files."""
    lines = []
    for split, one in export.splits.items():
        counts = ", ".join(f"{count} {name}" for name, count in one.instances.items())
        lines.append(
            f"{split}: {one.num_images} images ({one.num_blank} blank), "
            f"{sum(one.instances.values())} instances{counts and f' ({counts})'}"
        )
    title = f"changed, or not held by {export.format} (all in {EXPORT_MANIFEST}):"
    lines += _note_lines(export.notes, title)
    return "\n".join([*lines, f"{export.files} annotation files in {export.output}"])


def _note_lines(notes: Notes, title: str) -> list[str]:
    return [title, *(f"  {line}" for line in notes.lines())] if len(notes) else []


def parse_categories(text: str) -> dict[str, str]:
    """Parse ``--categories``: ``old=New,other=New,third=`` (an empty one leaves the class out).

    Raises:
        UserError: it has another form.
    """
    categories: dict[str, str] = {}
    for pair in text.split(","):
        old, equals, new = (part.strip() for part in pair.partition("="))
        if not old or not equals or old in categories:
            words = "has a class twice" if old in categories else "is not old=New,other=New"
            raise UserError(
                f"--categories {show(text)} {words}; write each class once, old=New.",
                code="option_invalid",
            )
        categories[old] = new
    return categories


def _renamed(
    sources: dict[str, Source], categories: dict[str, str], notes: Notes
) -> dict[str, str]:
    """Return the new name, or ``""``, of every class of the sources, in their order."""
    classes = list(dict.fromkeys(name for source in sources.values() for name in source.classes))
    if len(classes) > _MAX_CLASSES:
        raise UserError(
            f"The input has {len(classes)} classes; expected at most {_MAX_CLASSES}: check that "
            "the labels are class names.",
            code="annotations_invalid",
        )
    for old in categories:
        if old not in classes:
            close = difflib.get_close_matches(old, classes, n=3, cutoff=0.5)
            hint = f" Did you mean {' or '.join(map(show, close))}?" if close else ""
            known = ", ".join(map(show, classes[:20]))
            raise UserError(
                f"--categories has the class {show(old)}; expected one of {known}.{hint}",
                code="option_invalid",
            )
    renamed = {name: categories.get(name, name) for name in classes}
    for name in renamed.values():
        if name and not is_printable(name):
            raise UserError(
                f"{show(name)} is not a class name; rename it with --categories.",
                code="option_invalid",
            )
    if classes and not any(renamed.values()):
        raise UserError(
            "--categories leaves every class out; keep at least one.", code="option_invalid"
        )
    return renamed


def _check_choice(what: str, value: str, known: tuple, code: str = "option_invalid") -> None:
    if value not in known:
        raise UserError(f"The {what} is {value!r}; expected one of {', '.join(known)}.", code=code)


def _check_options(options: ReadOptions, categories: str | None, format: str | None) -> None:
    width = options.line_width
    if width is not None and not 0 < width < 1e4:
        raise UserError(
            f"--line-width is {width}; give a width in px above 0.", code="option_invalid"
        )
    words = ""
    if options.classes is not None and format != "blanks":
        words = "--classes is only for blanks; use --categories, or --from blanks"
    elif categories is not None and format == "blanks":
        words = "--categories does not fit to blanks, which have no classes; use --classes"
    if words:
        raise UserError(f"{words}.", code="option_conflict")


def _check_output(path: Path, output: Path) -> None:
    if path.is_dir() and output.resolve().is_relative_to(path.resolve()):
        raise UserError(
            f"--output {output} lies in --input {path}; choose a folder outside of it.",
            code="option_conflict",
        )


def _claim_conversion(output: Path, manifest: dict[str, Any]) -> None:
    """Write the unfinished manifest, unless another conversion or command wrote the output."""
    path = output / MANIFEST
    if path.exists():
        earlier = read_json(path, dict, "what a conversion writes; choose another --output")
        if earlier.get("images") != manifest["images"]:
            raise UserError(
                f"{output} holds the conversion of another input; delete it or choose another "
                "--output.",
                code="output_exists",
            )
    else:
        for other in sorted((output / "annotations").glob("instances_*.json")):
            raise UserError(
                f"{other} exists and was not written by a conversion; choose another --output.",
                code="output_exists",
            )
    write_json(path, {**manifest, "complete": False}, indent=1)


def _claim_export(output: Path, manifest: dict[str, Any]) -> None:
    """Write the unfinished manifest, unless the output has other files or another export."""
    path = output / EXPORT_MANIFEST
    claimed, words = {**manifest, "complete": False}, ""
    if path.is_file():
        found = read_json(path, dict, "what an export writes; choose another --output")
        if found.get("complete"):
            words = "holds an export; delete it"
        elif found != claimed:
            words = "was begun otherwise, with another input or option; delete it"
    elif output.exists() and (not output.is_dir() or any(output.iterdir())):
        words = "exists and is not empty; empty it"
    if words:
        raise UserError(f"{output} {words} or choose another --output.", code="output_exists")
    write_json(path, claimed, indent=1)


def _image_roots(path: Path, options: ReadOptions) -> dict[str, Path]:
    """Return the image folders, by split, that a conversion has left in their places."""
    if options.images is not None or not (path / MANIFEST).is_file():
        return {}
    manifest = read_json(path / MANIFEST, dict, "what a conversion writes; give --images")
    images = manifest.get("images")
    if manifest.get("place") != "keep" or not isinstance(images, dict):
        return {}
    roots = {split: Path(root) for split, root in images.items() if isinstance(root, str)}
    for split, root in roots.items():
        if not root.is_dir():
            raise UserError(
                f"The image folder {root} of {split} does not exist; give --images.",
                code="file_missing",
            )
    return roots


def _check_not_empty(written: list[Written], notes: Notes, may_be_blank: bool) -> None:
    images = sum(one.num_images for one in written)
    if images and (may_be_blank or any(sum(one.instances.values()) for one in written)):
        return
    for one in written:
        one.json_file.unlink()
    what = f"No annotation is left of {images} images" if images else "No image is left"
    fix = "check the export" + (", or read blanks with --from blanks" if images else "")
    lines = "".join(f"\n  {line}" for line in notes.lines())
    raise UserError(
        f"{what}; {fix}{', and what was left out:' if lines else '.'}{lines}", code="dataset_empty"
    )


class _Usable:
    """The records of one split whose images can be used, which are copied or linked.

    ``place`` is one of ``layout.PLACES`` or ``EXPORT_PLACES``; with ``"none"`` the images are not
    looked at.
    """

    def __init__(
        self,
        written: Written,
        source: Source,
        place: str,
        options: ReadOptions,
        notes: Notes,
        polygons: bool,
    ):
        self._written, self._source, self._place = written, source, place
        self._options, self._notes, self._polygons = options, notes, polygons
        self._split = written.split

    def counted(self) -> Iterator[ImageRecord]:
        """Yield the records and count them."""
        for record in self.records():
            self._written.count([instance.category for instance in record.instances])
            yield record

    def records(self) -> Iterator[ImageRecord]:
        """Yield the records.

        Raises:
            UserError: at the end, with the number of images that cannot be used.
        """
        source, bad = self._source, []
        seen: dict[str, str] = {}
        for record in tqdm(
            source.records(), self._split, source.num_images, unit="image", disable=None
        ):
            name = self._checked_name(record, seen)
            image = source.image_root / name
            try:
                if self._place != "none":
                    self._check_file(image, record)
            except UserError as error:
                if self._options.skip_broken:
                    layout.skip_or_raise(error, name, self._options, self._notes)
                else:
                    bad.append(str(error).rstrip("."))
                continue
            if bad:  # nothing will be written; go on to count the others
                continue
            seen[name] = record.file_name
            record.file_name = name
            if self._place in ("copy", "link"):
                layout.place_image(image, self._written.image_root / name, self._place)
            if self._polygons:
                record.instances = list(self._outlined(record))
            yield record
        if bad:
            more = "; …" if len(bad) > _EXAMPLES else ""
            raise UserError(
                f"{len(bad)} images of {self._split} cannot be used: "
                f"{'; '.join(bad[:_EXAMPLES])}{more}. Fix them, give their folder with --images, "
                "or leave them out with --skip-broken.",
                code="image_invalid",
            )

    def _checked_name(self, record: ImageRecord, seen: dict[str, str]) -> str:
        where = f"An image of {self._split} in {self._source.image_root}"
        name = layout.safe_name(record.file_name, where)
        if name in seen:
            twice = seen[name]
            same = "twice" if twice == record.file_name else f"also as {show(record.file_name)}"
            raise UserError(
                f"{where} is named {same}: {show(twice)}; join its annotations, or delete one of "
                "the two.",
                code="name_clash",
            )
        return name

    def _check_file(self, path: Path, record: ImageRecord) -> None:
        if not path.is_file():
            raise UserError(f"no {path}", code="image_missing")
        layout.checked_size(path, self._options, (record.width, record.height))

    def _outlined(self, record: ImageRecord) -> Iterator[Instance]:
        for instance in record.instances:
            if isinstance(instance.segmentation, list) or instance.iscrowd:
                yield instance
                continue
            rings = segmentation_to_polygons(instance.segmentation, self._notes, instance.where)
            if rings:
                yield replace(instance, segmentation=[ring.reshape(-1).tolist() for ring in rings])
            else:
                self._notes.add("instance_lost", instance.where, "no pixel")


class _CocoWriter:
    """Writer of the COCO JSON of one split, image by image."""

    def __init__(self, written: Written, renamed: dict[str, str], names: list[str], notes: Notes):
        """
        Args:
            written: takes the numbers.
            renamed: class name of the source -> the one written, or ``""``.
            names: class names by category id from 1.
            notes: takes what is changed and left out.
        """
        self._written, self._renamed, self._notes = written, renamed, notes
        self._ids = {name: index + 1 for index, name in enumerate(names)}
        self._num_annotations = 0

    def write(self, records: Iterator[ImageRecord]) -> None:
        """Write the whole JSON; images come last, so that only they are kept in memory."""
        self._written.instances = dict.fromkeys(self._ids, 0)
        images: list[str] = []
        with atomic_write(self._written.json_file) as file:
            head = {
                "info": {"description": f"Written by microplastics {__version__}"},
                "categories": [
                    {"id": id_, "name": name, "supercategory": ""}
                    for name, id_ in self._ids.items()
                ],
            }
            file.write(json.dumps(head)[:-1] + ', "annotations": [')
            for record in records:
                image_id = len(images) + 1
                fields = {
                    **_further(record.extra, _IMAGE_FIELDS),
                    "id": image_id,
                    "file_name": record.file_name,
                    "width": record.width,
                    "height": record.height,
                }
                images.append("\n" + json.dumps(fields, allow_nan=False))
                found = (self._write(file, each, record, image_id) for each in record.instances)
                self._written.count([name for name in found if name])
            file.write('\n], "images": [' + ",".join(images) + "\n]}\n")

    def _write(
        self, file: IO[str], instance: Instance, record: ImageRecord, image_id: int
    ) -> str | None:
        """Write an instance and return its class; None, with a note, if it is left out."""
        new, where = self._renamed[instance.category], instance.where
        if not new:
            self._notes.add("category_dropped", where, show(instance.category))
            return None
        measured = measured_segmentation(
            instance.segmentation, record.height, record.width, self._notes, where
        )
        if measured is None:
            return None
        if measured.subpixel:
            self._notes.add("shape_subpixel", where)
        if new != instance.category:
            self._notes.add("category_renamed", where, show(instance.category))
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
        return new


def _further(extra: dict[str, Any], standard: frozenset[str]) -> dict[str, Any]:
    return {key: value for key, value in extra.items() if key not in standard}
