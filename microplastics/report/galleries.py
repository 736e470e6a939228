"""Folders of pictures: a data set, the batches of a training, the results of an evaluation."""

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from detectron2.data.detection_utils import convert_image_to_rgb
from tqdm import tqdm

from microplastics.data.catalog import resolve_datasets
from microplastics.data.images import read_image
from microplastics.data.loader import TrainLoader, check_datasets
from microplastics.errors import UserError
from microplastics.report.figures import (
    Panel,
    class_legend,
    draw_instances,
    draw_photograph,
    draw_predictions,
    picture_names,
    save_picture,
    show_picture,
    side_by_side,
)
from microplastics.report.results import read_results, results_by_image, results_to_instances
from microplastics.report.visualizer import picture_scale

# Three panels of this side still open in any viewer.
_PANEL_SIDE = 2400


@dataclass(frozen=True)
class ResultsGallery:
    """What :func:`draw_results` drew.

    Attributes:
        pictures: number of pictures.
        drawn: predictions in the whole file that reach the threshold.
        predictions: predictions in the whole file.
        best_score: the highest score of them; NaN without any.
    """

    pictures: int
    drawn: int
    predictions: int
    best_score: float


def draw_annotations(
    cfg: CfgNode, output_dir: str, limit: int | None = None, show: bool = False
) -> int:
    """Draw the annotations of every image of DATASETS.TRAIN.

    Args:
        cfg: the config.
        output_dir: folder for the pictures.
        limit: draw the first so many; all if ``None``.
        show: show them in a window instead.

    Returns:
        The number of pictures.

    Raises:
        UserError: a data set or an image cannot be used, or the folder cannot be written.
    """
    names = resolve_datasets(cfg.DATASETS.TRAIN)
    if not names:
        raise UserError(
            "DATASETS.TRAIN is empty; give --config-file, or name a data set with "
            "DATASETS.TRAIN '(\"path/to.json:path/to/images\",)'."
        )
    pairs = [(dic, MetadataCatalog.get(name)) for name in names for dic in DatasetCatalog.get(name)]
    files = picture_names([dic["file_name"] for dic, _ in pairs])

    def pictures() -> Iterator[tuple[str, np.ndarray]]:
        for (dic, metadata), file in zip(pairs, files, strict=True):
            image = _read_rgb(dic, cfg.INPUT.MAX_PIXELS)
            classes = [a["category_id"] for a in dic["annotations"]]
            picture = draw_instances(image, dic, metadata)
            yield file, _captioned(picture, os.path.basename(dic["file_name"]), classes, metadata)

    return _deliver(pictures, len(pairs), output_dir, limit, show)


def draw_batches(
    cfg: CfgNode, output_dir: str, limit: int | None = None, show: bool = False
) -> int:
    """Draw what training will see: the augmented images in the order of their batches.

    Args:
        cfg: the config.
        output_dir: folder for the pictures; their names begin with the place in that order.
        limit: draw the first so many; one epoch if ``None``.
        show: show them in a window instead.

    Returns:
        The number of pictures.

    Raises:
        UserError: a data set or an image cannot be used, or the folder cannot be written.
    """
    cfg = check_datasets(cfg, splits=("TRAIN",))
    metadata = MetadataCatalog.get(cfg.DATASETS.TRAIN[0])
    loader = TrainLoader(cfg)

    def pictures() -> Iterator[tuple[str, np.ndarray]]:
        for place, item in enumerate(itertools.chain.from_iterable(loader)):
            image = convert_image_to_rgb(item["image"].permute(1, 2, 0), cfg.INPUT.FORMAT)
            image = np.ascontiguousarray(image, dtype=np.uint8)
            path = Path(item["file_name"])
            title = f"Batch {place // loader.batch_size}, {path.name}"
            picture = draw_instances(image, item["instances"], metadata)
            classes = item["instances"].gt_classes.tolist()
            yield f"{place:06d}_{path.stem}.jpg", _captioned(picture, title, classes, metadata)

    return _deliver(pictures, limit or len(loader.dataset_dicts), output_dir, limit, show)


def draw_results(
    results_file: str,
    dataset: str,
    output_dir: str,
    threshold: float = 0.5,
    limit: int | None = None,
) -> ResultsGallery:
    """Draw photograph, truth and prediction side by side for the images of a data set.

    Args:
        results_file: ``coco_instances_results.json``.
        dataset: a registered data set, or ``path/to.json:path/to/images``.
        output_dir: folder for the pictures.
        threshold: least score of the predictions that are drawn.
        limit: draw the first so many images; all if ``None``.

    Returns:
        What was drawn.

    Raises:
        UserError: the results or the data set cannot be used, they do not belong together, or the
            folder cannot be written.
    """
    (name,) = resolve_datasets(dataset)
    dicts, metadata = DatasetCatalog.get(name), MetadataCatalog.get(name)
    results = read_results(results_file)
    names = f"{results_file} and data set {name}"
    by_image = results_by_image(results, dicts, names)
    files = picture_names([dic["file_name"] for dic in dicts])
    ids = metadata.get("thing_dataset_id_to_contiguous_id", None)
    if ids is None:
        ids = {number: number for number in range(len(metadata.get("thing_classes", None) or ()))}

    def pictures() -> Iterator[tuple[str, np.ndarray]]:
        for dic, file in zip(dicts, files, strict=True):
            image = _read_rgb(dic)
            of_image = f"{names} (image {os.path.basename(dic['file_name'])})"
            found = results_to_instances(by_image[dic["image_id"]], image.shape[:2], ids, of_image)
            found = found[found.scores >= threshold]
            yield file, _comparison(image, dic, found, metadata, threshold)

    count = _deliver(pictures, len(dicts), output_dir, limit)
    scores = [result["score"] for result in results]
    return ResultsGallery(
        pictures=count,
        drawn=sum(score >= threshold for score in scores),
        predictions=len(results),
        best_score=max(scores, default=float("nan")),
    )


def _comparison(image, dic, found, metadata: Metadata, threshold: float) -> np.ndarray:
    scale = picture_scale(*image.shape[:2], max_side=_PANEL_SIDE)
    classes = [a["category_id"] for a in dic["annotations"]]
    predicted = found.pred_classes.tolist()
    title = f"Predicted, score ≥ {threshold:g}"
    return side_by_side(
        [
            Panel(
                draw_photograph(image, scale),
                "Photograph",
                note=os.path.basename(dic["file_name"]),
            ),
            Panel(
                draw_instances(image, dic, metadata, scale),
                "Truth",
                class_legend(classes, metadata),
            ),
            Panel(
                draw_predictions(image, found, metadata, scale),
                title,
                class_legend(predicted, metadata),
            ),
        ]
    )


def _captioned(
    picture: np.ndarray, title: str, classes: Sequence[int], metadata: Metadata
) -> np.ndarray:
    return side_by_side([Panel(picture, title, class_legend(classes, metadata))])


def _read_rgb(dic: dict[str, Any], max_pixels: int | None = None) -> np.ndarray:
    size = (dic["width"], dic["height"]) if "width" in dic else None
    image = read_image(dic["file_name"], expected_size=size, max_pixels=max_pixels)
    return np.ascontiguousarray(image[:, :, ::-1])


def _deliver(
    pictures: Callable[[], Iterator[tuple[str, np.ndarray]]],
    total: int,
    output_dir: str,
    limit: int | None,
    show: bool = False,
) -> int:
    """Save or show the first pictures, with a progress bar."""
    count = total if limit is None else min(limit, total)
    drawn = itertools.islice(pictures(), count)
    for name, picture in tqdm(drawn, total=count, desc="Drawing", unit="picture", disable=show):
        if show:
            show_picture(picture, name)
        else:
            save_picture(picture, os.path.join(output_dir, name))
    return count
