"""All checks of a data set, in one pass over its files."""

import os
from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.structures import BoxMode

from microplastics.data.doctor.collector import Collector, sort_findings
from microplastics.data.doctor.dataset import Dataset, load_dataset
from microplastics.data.doctor.diagnosis import DatasetSummary, Diagnosis
from microplastics.data.doctor.geometry import check_polygons
from microplastics.data.doctor.images import check_unlisted, inspect_images
from microplastics.data.doctor.model_fit import measure_fit
from microplastics.data.doctor.overlaps import check_overlaps
from microplastics.data.doctor.splits import (
    check_balance,
    check_categories,
    check_duplicates,
    check_groups,
)
from microplastics.errors import UserError


def diagnose(
    json_files: Sequence[str | os.PathLike],
    image_roots: Sequence[str | os.PathLike],
    *,
    cfg: CfgNode | None = None,
    config_file: str = "",
    group_regex: str | None = None,
    workers: int | None = None,
    max_pixels: int | None = None,
    progress: bool = True,
) -> Diagnosis:
    """Find everything that is wrong or odd in a data set.

    What the check before training finds (``coco_check``) is among it, from the same code. Every
    image is decoded.

    Args:
        json_files: COCO instance JSONs, such as those of train, val and test.
        image_roots: image folder of each, or one for all.
        cfg: config whose classes the files are held to and whose model is held to the particles,
            or None for neither.
        config_file: its path, for the report.
        group_regex: regular expression that takes the sample or filter out of a ``file_name``
            (see ``data.splits.groups.group_of``), or None.
        workers: processes that decode; None takes the processors there are, or none for a small
            job.
        max_pixels: images of more pixels are refused; ``images.MAX_PIXELS`` if None.
        progress: whether to show progress on stderr, where that is a terminal.

    Raises:
        UserError: a file or folder does not exist, or an argument makes no sense.
    """
    pairs = _pair(json_files, image_roots)
    if workers is not None and workers < 1:
        raise UserError(f"--workers is {workers}: give the number of processes, 1 or more.")
    collector = Collector()
    loaded = [load_dataset(json_file, root, collector) for json_file, root in pairs]
    datasets = [dataset for dataset in loaded if dataset is not None]
    findings, fit = [], None
    if datasets:
        for dataset in datasets:
            check_polygons(dataset, collector)
            check_overlaps(dataset, collector)
        images = inspect_images(datasets, collector, workers, max_pixels, progress)
        check_unlisted(datasets, collector)
        check_duplicates(datasets, images, collector)
        check_groups(datasets, images, group_regex, collector)
        check_categories(datasets, cfg, collector)
        check_balance(datasets, collector)
        if cfg is not None and any(dataset.examined.annotations for dataset in datasets):
            dicts, names = _detectron2_dicts(datasets)
            fit, findings = measure_fit(cfg, config_file, dicts, names)
    summaries = [
        dataset.summary if dataset else DatasetSummary(*pair)
        for dataset, pair in zip(loaded, pairs, strict=True)
    ]
    return Diagnosis(summaries, sort_findings(collector.findings() + findings), fit)


def _pair(
    json_files: Sequence[str | os.PathLike], image_roots: Sequence[str | os.PathLike]
) -> list[tuple[str, str]]:
    files = [os.fspath(path) for path in json_files]
    roots = [os.fspath(path) for path in image_roots]
    if not files:
        raise UserError("There is nothing to check; give at least one annotation file.")
    if len(roots) == 1:
        roots *= len(files)
    if len(roots) != len(files):
        raise UserError(
            f"--images names {len(roots)} folders for {len(files)} annotation files; give one for "
            "all, or one for each in the same order."
        )
    for index, path in enumerate(files):
        if os.path.realpath(path) in map(os.path.realpath, files[:index]):
            raise UserError(f"{path} is given twice; name every annotation file once.")
    return list(zip(files, roots, strict=True))


def _detectron2_dicts(datasets: Sequence[Dataset]) -> tuple[list[dict[str, Any]], list[str]]:
    """The sound annotations of all files in Detectron2's form, and the class names."""
    names = list(dict.fromkeys(n for dataset in datasets for n in dataset.class_names.values()))
    dicts = []
    for dataset in datasets:
        by_image: dict[int, list[dict[str, Any]]] = {}
        for annotation in dataset.examined.annotations:
            name = dataset.class_names[annotation["category_id"]]
            by_image.setdefault(annotation["image_id"], []).append(
                {
                    **annotation,
                    "bbox_mode": BoxMode.XYWH_ABS,
                    "category_id": names.index(name),
                }
            )
        images = dataset.examined.images
        dicts += [
            {
                "file_name": os.path.join(dataset.image_root, images[id_]["file_name"]),
                "image_id": id_,
                "height": images[id_]["height"],
                "width": images[id_]["width"],
                "annotations": annotations,
            }
            for id_, annotations in by_image.items()
        ]
    return dicts, names
