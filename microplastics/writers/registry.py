"""The files of a whole run, put together from the parts of its images."""

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from microplastics.utils.errors import UserError
from microplastics.writers import coco
from microplastics.writers.base import Format, ImageResult
from microplastics.writers.overlay import write_overlay
from microplastics.writers.parts import Part, read_part, read_schema
from microplastics.writers.qupath_imagej import write_geojson, write_rois
from microplastics.writers.tables import merge_schemas, open_csv, open_parquet, write_labels

CSV_FILE, PARQUET_FILE = "particles.csv", "particles.parquet"
RESULTS_FILE, ANNOTATIONS_FILE = "coco_instances_results.json", "annotations.json"

FORMATS: dict[str, Format] = {
    form.name: form
    for form in (
        Format("csv", (CSV_FILE,)),
        Format("parquet", (PARQUET_FILE,)),
        Format("coco", (RESULTS_FILE, ANNOTATIONS_FILE)),
        Format("overlays", ("overlays/{}.png",), write_overlay, needs_image=True),
        Format("labels", ("labels/{}.tif",), write_labels),
        Format("rois", ("rois/{}.zip",), write_rois),
        Format("geojson", ("geojson/{}.geojson",), write_geojson),
    )
}


@dataclasses.dataclass(frozen=True)
class RunFiles:
    """What :func:`write_run` wrote.

    Attributes:
        files: the paths.
        images: number of images.
        particles: number of particles.
        notes: what was left out, counted by name.
    """

    files: list[Path]
    images: int
    particles: int
    notes: dict[str, int]


def check_formats(names: Iterable[str]) -> list[str]:
    """Give the formats each once, in the order of the registry.

    Raises:
        UserError: a name is none of a format.
    """
    names = list(names)
    unknown = [name for name in names if name not in FORMATS]
    if unknown:
        raise UserError(
            f"--formats contains {', '.join(unknown)}; choose from {', '.join(FORMATS)}.",
            code="option_invalid",
        )
    return [name for name in FORMATS if name in names]


def write_image(
    result: ImageResult, output: Path, formats: Collection[str], name: str
) -> dict[str, int]:
    """Write the files that one image has for itself.

    Args:
        result: of the image.
        output: folder of the run.
        formats: names of ``FORMATS``; those of the whole run are passed over.
        name: stem of the files, by :func:`output_names`.

    Returns:
        what the files could not hold, and which were not written for want of the photograph,
        counted by name.

    Raises:
        UserError: a file cannot be written, or a format cannot hold the particles.
    """
    notes: Counter[str] = Counter()
    for key in check_formats(formats):
        form = FORMATS[key]
        if form.needs_image and result.image is None:
            notes[f"{key}_without_photograph"] += 1
        elif form.write is not None:
            notes.update(form.write(result, output / form.files[0].format(name)))
    return dict(notes)


def write_run(
    parts: Sequence[Path], output: Path, formats: Collection[str], class_names: Sequence[str]
) -> RunFiles:
    """Write the files of the whole run in two passes over its parts, one part at a time.

    Args:
        parts: in the order of the images, which gives the image ids (from 1).
        output: folder of the run.
        formats: names of ``FORMATS``; those of single images are passed over.
        class_names: of the model or data set, in order.

    Raises:
        UserError: a part cannot be read or is of other classes, there is none, or a file cannot be
            written.
    """
    if not parts:
        raise UserError(
            "The run has no finished image; run it again with --resume.", code="input_empty"
        )
    formats = check_formats(formats)
    schema = _schema(parts, class_names)
    files: list[Path] = []
    particles, notes = 0, Counter()
    with contextlib.ExitStack() as stack:

        def path(name: str) -> Path:
            files.append(output / name)
            return files[-1]

        tables, lists = [], []
        if "csv" in formats:
            tables.append(stack.enter_context(open_csv(path(CSV_FILE), schema)))
        if "parquet" in formats:
            tables.append(stack.enter_context(open_parquet(path(PARQUET_FILE), schema)))
        if "coco" in formats:
            results = coco.open_results(path(RESULTS_FILE), class_names)
            annotations = coco.open_annotations(path(ANNOTATIONS_FILE), class_names)
            lists += [stack.enter_context(results), stack.enter_context(annotations)]
        for image_id, part in enumerate(_read(parts), start=1):
            particles += len(part.counts)
            for add in tables:
                add(part.table)
            unscored = sum(add(part, image_id) for add in lists)
            if unscored:
                notes["coco_results_without_score"] += unscored
    return RunFiles(files, len(parts), particles, dict(notes))


def _schema(parts: Sequence[Path], class_names: Sequence[str]) -> pa.Schema:
    distinct: dict[pa.Schema, None] = {}
    for part in parts:
        image, schema = read_schema(part)
        if image["class_names"] != list(class_names):
            raise UserError(
                f"{part} is of a run with the classes {', '.join(image['class_names'])}, this one "
                f"has {', '.join(class_names)}; choose another --output.",
                code="run_mismatch",
            )
        distinct[schema] = None
    return merge_schemas(list(distinct))


def _read(parts: Sequence[Path]) -> Iterator[Part]:
    for part in parts:
        yield read_part(part)
