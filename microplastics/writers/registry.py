"""Output formats by name: the files of one image, and those of a whole run."""

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from microplastics.writers.coco import open_annotations, open_results
from microplastics.writers.overlay import write_overlay
from microplastics.writers.qupath_imagej import write_geojson, write_rois
from microplastics.writers.tables import (
    ImageResult,
    merge_schemas,
    open_csv,
    open_parquet,
    read_head,
    read_part,
    write_labels,
)

PARTICLES_FILE, PARQUET_FILE = "particles.csv", "particles.parquet"
RESULTS_FILE, ANNOTATIONS_FILE = "coco_instances_results.json", "annotations.json"


@dataclasses.dataclass(frozen=True)
class Format:
    """One output format.

    Attributes:
        files: below the output folder, with ``{}`` for the name of the image; a format without it
            has its files for the whole run.
        write: writes the file of one image, whole or not at all, and counts what it had to leave
            out by name; None for a format of the whole run (:func:`write_run`).
        needs_image: whether it looks at the photograph.
    """

    files: tuple[str, ...]
    write: Callable[[ImageResult, Path], dict[str, int]] | None = None
    needs_image: bool = False


FORMATS = {
    "csv": Format((PARTICLES_FILE,)),
    "parquet": Format((PARQUET_FILE,)),
    "coco": Format((RESULTS_FILE, ANNOTATIONS_FILE)),
    "overlays": Format(("overlays/{}.png",), write_overlay, needs_image=True),
    "labels": Format(("labels/{}.tif",), write_labels),
    "rois": Format(("rois/{}.zip",), write_rois),
    "geojson": Format(("geojson/{}.geojson",), write_geojson),
}


def write_image(
    result: ImageResult, output: Path, formats: Collection[str], name: str
) -> dict[str, int]:
    """Write the files that one image has for itself.

    Args:
        result: of the image.
        output: folder of the run.
        formats: names of ``FORMATS``; formats of the whole run are skipped.
        name: stem of the files, by :func:`microplastics.runs.images.output_names`.

    Returns:
        what the files could not hold, and which were not written for want of the photograph,
        counted by name.

    Raises:
        UserError: a file cannot be written, or a format cannot hold the particles.
    """
    notes: Counter[str] = Counter()
    for key in formats:
        form = FORMATS[key]
        if form.needs_image and result.image is None:
            notes[f"{key}_without_photograph"] += 1
        elif form.write is not None:
            notes.update(form.write(result, output / form.files[0].format(name)))
    return dict(notes)


def write_run(
    parts: Sequence[Path],
    output: Path,
    formats: Collection[str],
    class_names: Sequence[str],
    fiber_classes: Collection[str] = (),
) -> dict[str, int]:
    """Write the files of the whole run in two passes over its parts, one part at a time.

    Args:
        parts: at least one, in the order of the images, which gives the image ids (from 1).
        output: folder of the run.
        formats: names of ``FORMATS``; formats of single images are skipped.
        class_names: of the model or data set, in order.
        fiber_classes: those of them that were measured along their centreline.

    Returns:
        what was left out, counted by name.

    Raises:
        UserError: a part cannot be read, or a file cannot be written.
    """
    schema = merge_schemas(dict.fromkeys(read_head(part)[1] for part in parts))
    notes: Counter[str] = Counter()
    with contextlib.ExitStack() as stack:
        tables, lists = [], []
        if "csv" in formats:
            tables.append(stack.enter_context(open_csv(output / PARTICLES_FILE, schema)))
        if "parquet" in formats:
            tables.append(stack.enter_context(open_parquet(output / PARQUET_FILE, schema)))
        if "coco" in formats:
            lists = [
                stack.enter_context(open_results(output / RESULTS_FILE, class_names)),
                stack.enter_context(
                    open_annotations(output / ANNOTATIONS_FILE, class_names, fiber_classes)
                ),
            ]
        for image_id, part in enumerate(map(read_part, parts), start=1):
            for add in tables:
                add(part.table)
            notes["coco_results_without_score"] += sum(add(part, image_id) for add in lists)
    return dict(+notes)
