"""Exporting a COCO data set into another format, with its images, in one call."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from microplastics import __version__
from microplastics.data.coco_load import read_json
from microplastics.data.formats import canonical, coco, coco_layout, labelme, masks, yolo
from microplastics.data.formats.codes import NOTES
from microplastics.data.formats.files import checked_size, skip_or_raise
from microplastics.data.formats.notes import Notes
from microplastics.data.formats.placing import place_image
from microplastics.data.formats.records import ImageRecord, Instance, ReadOptions, Source
from microplastics.data.outlines import segmentation_to_polygons
from microplastics.errors import UserError
from microplastics.files import write_json

MANIFEST = "export.json"
PLACES = ("copy", "link", "none")
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
        path: JSON, or folder of a data set, as ``tools/convert_dataset.py`` writes it or another
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
    _claim(output, manifest)
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
        written = canonical.write_dataset(
            streams, output, notes, place=coco_place, options=options, verbatim=True
        )
    else:
        writer = {"yolo": yolo, "labelme": labelme, "masks": masks}[format]
        written = writer.write_dataset(streams, output, notes)
    manifest["splits"] = {split: one.counts() for split, one in splits.items()}
    write_json(
        output / MANIFEST, {**manifest, "complete": True, "notes": notes.as_dict()}, indent=1
    )
    return Export(format, output, splits, notes, len(written))


def _check_request(path: Path, output: Path, format: str, place: str) -> None:
    if format not in FORMATS:
        raise UserError(f"No format {format!r} can be written; choose one of {', '.join(FORMATS)}.")
    if place not in PLACES:
        raise UserError(f"Images cannot be placed by {place!r}; choose one of {', '.join(PLACES)}.")
    if not path.exists():
        raise UserError(f"{path} does not exist; correct --input.")
    if path.is_dir() and output.resolve().is_relative_to(path.resolve()):
        raise UserError(f"--output {output} lies in --input {path}; choose a folder outside of it.")


def describe(export: Export) -> str:
    """Say in words what was exported and what changed or was lost."""
    lines = []
    for split, one in export.splits.items():
        counts = ", ".join(f"{count} {name}" for name, count in one.instances.items())
        lines.append(
            f"{split}: {one.num_images} images ({one.num_blank} blank), "
            f"{one.instances.total()} instances{f' ({counts})' if counts else ''}"
        )
    if len(export.notes):
        lines.append(f"changed, or not held by {export.format} (all in {MANIFEST}):")
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
    manifest = path / canonical.MANIFEST
    if options.images is not None or not manifest.is_file():
        return coco.open_dataset(path, options, notes)
    roots = _image_roots(read_json(manifest, dict, "what a conversion writes; give --images"))
    jsons = coco_layout.find_jsons(path)
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


def _claim(output: Path, manifest: dict[str, Any]) -> None:
    """Refuse to write among other files, or over another export."""
    path = output / MANIFEST
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
