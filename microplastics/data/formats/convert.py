"""Conversion of data sets to COCO, and their export to other formats."""

import contextlib
import difflib
import functools
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tabulate import tabulate
from tqdm import tqdm

from microplastics import __version__
from microplastics.data.coco import is_printable, same_but_case, show
from microplastics.data.formats import cvat, labelme, labelstudio, layout, masks, yolo
from microplastics.data.formats.base import ImageRecord, Notes, ReadOptions, Source, open_dataset
from microplastics.data.formats.shapes import checked, noting
from microplastics.data.images import NO_LIMIT, read_image, stored_orientation
from microplastics.data.orientation import (
    STORED,
    UNSURE,
    keeps_size,
    reading,
    turn_segmentation,
)
from microplastics.data.segmentation import (
    SegmentationError,
    measure,
    segmentation_to_polygons,
)
from microplastics.utils.errors import UserError
from microplastics.utils.io import atomic_write, read_json, remove_leftovers, write_json

MANIFEST, EXPORT_MANIFEST = layout.MANIFESTS
PROJECT_CLASSES = ("Fiber", "Fragment", "Film")
# Format: where it has the images of a split.
_IMAGE_FOLDERS = {"yolo": "images/{}", "labelme": "{}", "masks": "{}/images"}
_IMAGE_FOLDERS |= {"labelstudio": "{}", "cvat": "{}/images"}
FORMATS = (*_IMAGE_FOLDERS, "coco")

# They write the annotations of all splits; the notes take what the format cannot hold.
_WRITERS = {"yolo": yolo.write, "labelme": labelme.write, "masks": masks.write}
_WRITERS |= {"labelstudio": labelstudio.write, "cvat": cvat.write}
_EXAMPLES = 5


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

    def count(self, record: ImageRecord) -> ImageRecord:
        """Count an image and its instances, and return it."""
        self.num_images += 1
        self.num_blank += not record.instances
        for each in record.instances:
            self.instances[each.category] = self.instances.get(each.category, 0) + 1
        return record

    def counts(self) -> dict[str, Any]:
        """Return the numbers, for the manifests."""
        return {"images": self.num_images, "blank": self.num_blank, "instances": self.instances}


@dataclass
class Result:
    """Result of :func:`convert_dataset` and :func:`export_dataset`.

    Attributes:
        format: name of the format that was read or written.
        output: folder that was written.
        written: one entry a split.
        notes: what was changed, left out, or not held by the format.
        manifest: JSON file with all of them.
    """

    format: str
    output: Path
    written: list[Written]
    notes: Notes
    manifest: str


def convert_dataset(
    path: Path,
    output: Path,
    format: str | None = None,
    *,
    categories: str | None = None,
    place: str = "keep",
    options: ReadOptions | None = None,
) -> Result:
    """Convert a data set in any format to COCO; see :func:`write_dataset`.

    Args:
        path: file or folder of the data set.
        output: folder of the new data set, outside of ``path``.
        format: one of ``base.READERS``; detected if None, except ``"blanks"``.
        categories: ``old=New,other=New,third=``.
        place: ``"keep"``, ``"copy"`` or ``"link"`` the images.
        options: how to read.
    """
    options = options or ReadOptions()
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
    return Result(name, output, written, notes, MANIFEST)


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
            into ``output/{split}/``; a split with embedded pictures is linked rather than kept.
        options: ``skip_broken`` leaves out missing and broken images.
        about: further fields of ``conversion.json``, such as the format.
        verbatim: write exactly the classes of the sources, which may have no annotation;
            otherwise the project's three classes are written if they are enough.
        polygons: outline RLE masks along their pixels, except crowds.

    Returns:
        the splits written, in the order of the sources.

    Raises:
        UserError: a name or image cannot be used, nothing is left, or the output has other data.
    """
    options = options or ReadOptions()
    renamed = _renamed(sources, categories or {})
    names = list(dict.fromkeys(name for name in renamed.values() if name))
    groups = _supercategories(sources, renamed)
    if not verbatim and set(names) <= set(PROJECT_CLASSES):
        names = list(PROJECT_CLASSES)
    manifest = {
        "version": __version__,
        **(about or {}),
        "images": {
            # Embedded pictures are nowhere else.
            split: str((output / split if source.embedded else source.image_root).absolute())
            for split, source in sources.items()
        },
        "place": place,
        "categories": categories or {},
        "options": {
            key: str(value) if isinstance(value, Path) else value
            for key, value in vars(options).items()
        },
    }
    _claim_conversion(output, manifest)
    for alike in same_but_case(filter(None, renamed.values())):
        notes.add("class_case", " and ".join(map(show, alike)))
    remove_leftovers(output, output / "annotations")
    written = []
    for split, source in sources.items():
        own_place = "link" if place == "keep" and source.embedded else place
        root = source.image_root if own_place == "keep" else output / split
        if own_place != "keep":
            remove_leftovers(root, deep=True)
        one = Written(split, root, output / "annotations" / f"instances_{split}.json")
        records = _usable_records(one, source, own_place, options, notes, polygons)
        _write_coco(one, _renaming(records, renamed, notes), names, groups, notes)
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
) -> Result:
    """Export a COCO JSON, or a folder with several splits, and write ``export.json``.

    Args:
        path: JSON, or folder of a data set, as :func:`convert_dataset` or another tool writes it.
        output: folder that is new, empty, or left by a killed run of the same export.
        format: one of ``FORMATS``.
        place: ``"copy"`` or ``"link"`` the images into the folders of the format, or ``"none"``.
        polygons: outline RLE masks along their pixels, except crowds.
        options: how to read.
    """
    options = options or ReadOptions()
    _check_output(path, output)
    notes = Notes()
    _, sources = open_dataset(path, options, notes, "coco")
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
    else:
        splits, streams = [], {}
        for split, source in sources.items():
            one = Written(split, output / _IMAGE_FOLDERS[format].format(split))
            records = _usable_records(one, source, place, options, notes, polygons)
            splits.append(one)
            streams[split] = replace(source, records=functools.partial(map, one.count, records))
        _WRITERS[format](streams, output, notes)
    counts = {one.split: one.counts() for one in splits}
    manifest |= {"splits": counts, "complete": True, "notes": notes.as_dict()}
    write_json(output / EXPORT_MANIFEST, manifest, indent=1)
    return Result(format, output, splits, notes, EXPORT_MANIFEST)


def describe(result: Result) -> str:
    """Return a table of the splits, the notes, and what to do with each split."""
    names = list(dict.fromkeys(name for one in result.written for name in one.instances))
    rows = [
        [one.split, one.num_images, one.num_blank, *(one.instances.get(name, 0) for name in names)]
        for one in result.written
    ]
    table = tabulate(rows, ["split", "images", "blank", *names], tablefmt="plain")
    lines = [f"format: {result.format}", table]
    if len(result.notes):
        lines.append(f"changed, left out or not held (all in {result.manifest}):")
        lines += [f"  {line}" for line in result.notes.lines()]
    for one in result.written:
        lines.append(f"{one.split}: {one.entry if one.json_file else one.image_root}")
        if one.json_file and one.split == "all":
            lines.append(
                f"Not split yet: microplastics split --input {one.json_file} --images "
                f"{one.image_root} --output SPLITS"
            )
    return "\n".join(lines)


def parse_categories(text: str) -> dict[str, str]:
    """Parse ``--categories``: ``old=New,other=New,third=`` (an empty one leaves the class out)."""
    categories: dict[str, str] = {}
    for pair in text.split(","):
        old, equals, new = (part.strip() for part in pair.partition("="))
        if not old or not equals or old in categories:
            raise UserError(
                f"--categories {show(text)} is not old=New,other=New; write each class once, "
                "old=New.",
                code="option_invalid",
            )
        categories[old] = new
    return categories


def _renamed(sources: dict[str, Source], categories: dict[str, str]) -> dict[str, str]:
    """Return the new name, or ``""``, of every class of the sources, in their order."""
    classes = list(dict.fromkeys(name for source in sources.values() for name in source.classes))
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
    words = ""
    for name in renamed.values():
        if name and not is_printable(name):
            words = f"gives the class name {show(name)}; expected printable text"
    if classes and not any(renamed.values()):
        words = "leaves every class out; keep at least one"
    if words:
        raise UserError(f"--categories {words}.", code="option_invalid")
    return renamed


def _supercategories(sources: dict[str, Source], renamed: dict[str, str]) -> dict[str, str]:
    """Return the supercategory of each new class; the first that one of its old classes has."""
    groups: dict[str, str] = {}
    for source in sources.values():
        for old, group in source.supercategories.items():
            if group and is_printable(group):
                groups.setdefault(renamed[old], group)
    return groups


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
    elif options.images is not None and format == "blanks":
        words = "--images does not fit to blanks; give their folder as --input"
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
    path, words = output / MANIFEST, ""
    if path.exists():
        earlier = read_json(path, dict, "what a conversion writes; choose another --output")
        if earlier.get("images") != manifest["images"]:
            words = "holds the conversion of another input; delete it"
    else:
        for other in sorted((output / "annotations").glob("instances_*.json")):
            words = f"holds {other.name}, which no conversion wrote; delete it"
    if words:
        raise UserError(f"{output} {words} or choose another --output.", code="output_exists")
    write_json(path, {**manifest, "complete": False}, indent=1)


def _claim_export(output: Path, manifest: dict[str, Any]) -> None:
    """Write the unfinished manifest, unless the output has other files or another export."""
    path = output / EXPORT_MANIFEST
    claimed, words = {**manifest, "complete": False}, ""
    if not path.is_file():
        remove_leftovers(output)
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
    remove_leftovers(output, deep=True)
    write_json(path, claimed, indent=1)


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


def _usable_records(
    written: Written, source: Source, place: str, options: ReadOptions, notes: Notes, polygons: bool
) -> Iterator[ImageRecord]:
    """Yield the records whose images can be used and copy or link these; refuse others at last."""
    split, bad = written.split, []
    where = f"An image of {split} in {source.image_root}"
    seen: dict[str, str] = {}
    for record in tqdm(source.records(), split, source.num_images, unit="image", disable=None):
        name = layout.safe_name(record.file_name, where)
        if name in seen:
            raise UserError(
                f"{where} is named twice, {show(seen[name])} and {show(record.file_name)}; join "
                "its annotations, or delete one of the two.",
                code="name_clash",
            )
        image = source.image_root / name
        try:
            if place != "none" and record.picture is None:
                layout.checked_size(image, (record.width, record.height))
        except UserError as error:
            if options.skip_broken:
                layout.note_skipped(error, name, notes)
            else:
                bad.append(str(error).rstrip("."))
            continue
        if bad:  # nothing will be written; go on to count the others
            continue
        seen[name] = record.file_name
        record.file_name = name
        _turn_upright(record, image, notes)
        if record.picture is not None:
            layout.write_picture(record.picture, written.image_root / name)
        elif place in ("copy", "link"):
            layout.place_image(image, written.image_root / name, place)
        for each in record.instances if polygons else ():
            if isinstance(each.segmentation, dict) and not each.iscrowd:
                rings = segmentation_to_polygons(each.segmentation, notes, each.where)
                each.segmentation = [ring.reshape(-1).tolist() for ring in rings]
        yield record
    if bad:
        more = "; …" if len(bad) > _EXAMPLES else ""
        raise UserError(
            f"{len(bad)} images of {split} cannot be used: {'; '.join(bad[:_EXAMPLES])}{more}. "
            "Fix them, give their folder with --images, or leave them out with --skip-broken.",
            code="image_invalid",
        )


def _turn_upright(record: ImageRecord, image: Path, notes: Notes) -> None:
    """Turn annotations that were made on an image without its EXIF rotation.

    Only where the rotation keeps the size, and the picture shows it.
    """
    if not record.instances or not image.exists():
        return
    orientation = stored_orientation(image, NO_LIMIT)
    if not keeps_size(orientation, record.width, record.height):
        return
    outlines = {}
    for index, each in enumerate(record.instances):
        with contextlib.suppress(SegmentationError):  # noted when it is written
            measured = measure(each.segmentation, record.height, record.width)
            outlines[index] = measured.segmentation
    found = reading(read_image(image), orientation, list(outlines.values()))
    if found == UNSURE:
        notes.add("exif_unsure", record.file_name, f"orientation {orientation}")
    elif found == STORED:
        notes.add("exif_turned", record.file_name, f"orientation {orientation}")
        size = record.width, record.height
        for index, outline in outlines.items():
            instance = record.instances[index]
            instance.segmentation = turn_segmentation(outline, orientation, *size)


def _renaming(
    records: Iterator[ImageRecord], renamed: dict[str, str], notes: Notes
) -> Iterator[ImageRecord]:
    """Yield the records with new class names, without the instances of classes that have none."""
    for record in records:
        kept = []
        for instance in record.instances:
            old, new = instance.category, renamed[instance.category]
            if new != old:
                code = "category_renamed" if new else "category_dropped"
                notes.add(code, instance.where, show(old))
                instance = replace(instance, category=new)
            if new:
                kept.append(instance)
        yield replace(record, instances=kept)


def _write_coco(
    written: Written,
    records: Iterator[ImageRecord],
    names: list[str],
    groups: dict[str, str],
    notes: Notes,
) -> None:
    """Write the COCO JSON of a split; images come last, so that only they are kept in memory."""
    ids = {name: id_ for id_, name in enumerate(names, 1)}
    categories = [
        {"id": id_, "name": name, "supercategory": groups.get(name, "")}
        for name, id_ in ids.items()
    ]
    head = {"info": {"description": f"Written by microplastics {__version__}"}}
    written.instances = dict.fromkeys(names, 0)
    images: list[str] = []
    num_annotations = 0
    with atomic_write(written.json_file) as file:
        file.write(json.dumps({**head, "categories": categories})[:-1] + ', "annotations": [')
        for record in records:
            image = {
                "id": len(images) + 1,
                "file_name": record.file_name,
                "width": record.width,
                "height": record.height,
            }
            images.append("\n" + json.dumps({**record.extra, **image}, allow_nan=False))
            kept = []
            for instance in record.instances:
                with noting(notes, instance.where):
                    measured = checked(instance.segmentation, record, notes, instance.where)
                    if measured.subpixel:
                        notes.add("shape_subpixel", instance.where)
                    area = measured.area
                    num_annotations += 1
                    fields = {
                        "id": num_annotations,
                        "image_id": image["id"],
                        "category_id": ids[instance.category],
                        "bbox": list(measured.box),
                        "area": int(area) if area == int(area) else area,
                        "iscrowd": instance.iscrowd,
                        "segmentation": measured.segmentation,
                    }
                    # Further fields come last, but replace none.
                    fields = {**fields, **instance.extra, **fields}
                    comma = "," if num_annotations > 1 else ""
                    file.write(f"{comma}\n{json.dumps(fields, allow_nan=False)}")
                    kept.append(instance)
            written.count(replace(record, instances=kept))
        file.write('\n], "images": [' + ",".join(images) + "\n]}\n")
