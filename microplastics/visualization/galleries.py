"""Pictures of annotations, batches, augmentations and results."""

import itertools
import json
import math
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from detectron2.data.detection_utils import convert_image_to_rgb
from detectron2.structures import Boxes, Instances
from tqdm import tqdm

from microplastics.data.catalog import resolve_datasets
from microplastics.data.images import read_image
from microplastics.data.loader import TrainLoader, check_datasets, training_dicts
from microplastics.data.mapper import MicroplasticsDatasetMapper
from microplastics.structures.crop_masks import CropMasks
from microplastics.utils.errors import UserError
from microplastics.utils.system import seeded
from microplastics.visualization.draw import (
    Panel,
    class_legend,
    draw_instances,
    draw_photograph,
    draw_predictions,
    picture_names,
    picture_scale,
    save_picture,
    show_picture,
    side_by_side,
)

_RIGHT_FILE = "give the coco_instances_results.json that an evaluation wrote"

# Three panels of this side still open in any viewer.
_PANEL_SIDE = 2400
_COLUMNS = 4
_GAP = 8


def read_results(path: str | os.PathLike) -> list[dict[str, Any]]:
    """Read COCO results and check every field that is used.

    Args:
        path: JSON list of ``image_id``, ``category_id``, ``score`` and ``bbox`` (x0, y0, width,
            height in px) or ``segmentation``, or both.

    Returns:
        The list.

    Raises:
        UserError: the file is missing or is not such a list.
    """
    path = os.fspath(path)
    try:
        with open(path, "rb") as file:
            results = json.loads(file.read())
    except (OSError, RecursionError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        words = "Cannot read" if isinstance(error, OSError) else "No JSON in"
        raise UserError(f"{words} {path}: {reason}; {_RIGHT_FILE}.", code="file_invalid") from error
    if not isinstance(results, list):
        raise UserError(
            f"{path} contains no list of predictions; {_RIGHT_FILE}.", code="file_invalid"
        )
    for index, result in enumerate(results):
        wrong = _wrong_field(result)
        if wrong:
            raise UserError(
                f"Prediction number {index + 1} of {path} {wrong}; {_RIGHT_FILE}.",
                code="file_invalid",
            )
    return results


def results_by_image(
    results: Sequence[dict[str, Any]], dataset_dicts: Sequence[dict[str, Any]], names: str
) -> dict[Any, list[dict[str, Any]]]:
    """Sort results by their image.

    Args:
        results: of :func:`read_results`.
        dataset_dicts: the data set's images.
        names: file and data set in words, for the error.

    Returns:
        ``image_id`` to its results; images without any are there too.

    Raises:
        UserError: a result is for an image that the data set does not have.
    """
    by_image: dict[Any, list] = {dic["image_id"]: [] for dic in dataset_dicts}
    unknown = defaultdict(int)
    for result in results:
        if result["image_id"] in by_image:
            by_image[result["image_id"]].append(result)
        else:
            unknown[result["image_id"]] += 1
    if unknown:
        raise UserError(
            f"{names} do not belong together: {sum(unknown.values())} predictions are for images "
            f"that the data set lacks (image id {next(iter(unknown))!r}, …); name the data set "
            "that was evaluated with --dataset.",
            code="annotations_invalid",
        )
    return by_image


def results_to_instances(
    results: Sequence[dict[str, Any]],
    image_size: tuple[int, int],
    contiguous_ids: dict[int, int],
    names: str,
) -> Instances:
    """Turn the results of one image into Detectron2 ``Instances``.

    Args:
        results: of :func:`read_results`, all of one image.
        image_size: height and width in px.
        contiguous_ids: class number of each COCO category id.
        names: file, data set and image in words, for the errors.

    Returns:
        ``scores``, ``pred_classes``, ``pred_boxes`` (cut at the image's border), and
        ``pred_masks`` (``CropMasks``) if the results have masks.

    Raises:
        UserError: a category, a box or a mask does not fit the data set.
    """

    def misfit(words: str) -> UserError:
        return UserError(
            f"{names} do not belong together: {words}; name the data set that was evaluated with "
            "--dataset.",
            code="annotations_invalid",
        )

    unknown = {r["category_id"] for r in results} - set(contiguous_ids)
    if unknown:
        raise misfit(
            f"the category {min(unknown)} is predicted, and the data set has "
            f"{', '.join(map(str, contiguous_ids))}"
        )
    instances = Instances(image_size)
    instances.scores = torch.tensor([float(r["score"]) for r in results])
    classes = [contiguous_ids[r["category_id"]] for r in results]
    instances.pred_classes = torch.tensor(classes, dtype=torch.int64)
    with_mask = [r for r in results if "segmentation" in r]
    masks = None
    if with_mask:
        try:
            masks = CropMasks.from_coco([r["segmentation"] for r in with_mask], image_size)
        except ValueError as error:
            raise misfit(f"a predicted mask does not fit ({error})") from error
        if len(with_mask) < len(results):
            raise misfit("some predictions have masks, others not")
        instances.pred_masks = masks
    boxes = _corners(results, masks)
    frame = np.array(image_size[::-1] * 2, dtype=np.float64)
    if ((boxes[:, :2] > frame[:2]) | (boxes[:, 2:] < 0)).any():
        raise misfit(
            f"a predicted box lies outside the image of {frame[0]:.0f} x {frame[1]:.0f} px"
        )
    instances.pred_boxes = Boxes(torch.from_numpy(boxes.clip(0, frame)))
    return instances


def _corners(results: Sequence[dict[str, Any]], masks: CropMasks | None) -> np.ndarray:
    """(N, 4) x0, y0, x1, y1 in px of each result's box, or of its mask without a box."""
    boxes = np.zeros((len(results), 4))
    for index, result in enumerate(results):
        if "bbox" in result:
            x, y, width, height = result["bbox"]
            boxes[index] = x, y, x + width, y + height
        else:
            boxes[index] = masks[index].get_bounding_boxes().tensor[0].numpy()
    return boxes


def _wrong_field(result: Any) -> str:
    """What is wrong with one prediction, or nothing."""
    if not isinstance(result, dict):
        return "is not a JSON object"
    if not isinstance(result.get("image_id"), (int, str)):
        return "lacks an image_id"
    if type(result.get("category_id")) is not int:
        return "lacks a category_id"
    if not _is_number(result.get("score")):
        return "has no number as score"
    if "bbox" in result:
        box = result["bbox"]
        if not (isinstance(box, list) and len(box) == 4 and all(map(_is_number, box))):
            return "has no four numbers as bbox"
        if min(box[2:]) < 0:
            return "has a bbox of negative size"
    elif "segmentation" not in result:
        return "has neither bbox nor segmentation"
    return ""


def _is_number(value: Any) -> bool:
    # An int of a thousand digits is a number, too, but not one that a float holds.
    try:
        return type(value) in (int, float) and math.isfinite(value)
    except OverflowError:
        return False


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
        limit: number of images to draw; all if ``None``.
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
            "DATASETS.TRAIN '(\"path/to.json:path/to/images\",)'.",
            code="option_missing",
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
        limit: number of images to draw; one epoch if ``None``.
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
        limit: number of images to draw; all if ``None``.

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


def draw_augmentations(
    cfg: CfgNode, output: str | os.PathLike, side: int = 280, seed: int = 0
) -> dict[str, int]:
    """Draw the training image with most particles as each augmentation of INPUT.AUG makes it.

    Each is switched on by itself, with the config's values; nothing is flipped.

    Args:
        cfg: a config with DATASETS.TRAIN.
        output: the picture, ``.jpg`` or ``.png``.
        side: of each panel, in px.
        seed: of the random numbers.

    Returns:
        Number of particles in each panel, by its title.

    Raises:
        UserError: the data set cannot be used, a value makes no sense, or the picture cannot be
            written.
    """
    if side < 32:
        raise UserError(
            f"--side is {side}; give the side of a panel in px, 32 or more.", code="option_invalid"
        )
    cfg = check_datasets(cfg, splits=("TRAIN",))
    metadata = MetadataCatalog.get(cfg.DATASETS.TRAIN[0])
    dicts = training_dicts(cfg)
    record = max(dicts, key=lambda d: len(d["annotations"]))
    panels, counts = [], {}
    for name in ("", *cfg.INPUT.AUG):
        mapper = MicroplasticsDatasetMapper(_alone(cfg, name), is_train=True)
        mapper.partners = dicts
        with seeded(seed):
            mapped = mapper(record)
        title = name or "As it is"
        counts[title] = len(mapped["instances"])
        panels.append(Panel(_picture(mapped, cfg, metadata, side), title))
    rows = [side_by_side(panels[i : i + _COLUMNS]) for i in range(0, len(panels), _COLUMNS)]
    width = max(row.shape[1] for row in rows)
    padded = [
        np.pad(row, ((0, _GAP), (0, width - row.shape[1]), (0, 0)), constant_values=255)
        for row in rows
    ]
    save_picture(np.concatenate(padded), output)
    return counts


def _alone(cfg: CfgNode, name: str) -> CfgNode:
    """The config with one augmentation always on and all others off."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.INPUT.RANDOM_FLIP = "none"
    cfg.INPUT.CROP.ENABLED = False
    for node in cfg.INPUT.AUG.values():
        node.PROB = 0.0
    if name:
        cfg.INPUT.AUG[name].PROB = 1.0
    cfg.freeze()
    return cfg


def _picture(mapped: dict[str, Any], cfg: CfgNode, metadata: Any, side: int) -> np.ndarray:
    """A mapped image with its masks, fitted into a white square."""
    image = mapped["image"].numpy().transpose(1, 2, 0)
    if cfg.INPUT.FORMAT == "BGR":
        image = image[:, :, ::-1]
    drawn = draw_instances(
        np.ascontiguousarray(image), mapped["instances"], metadata, scale=2.0, labels=False
    )
    scale = side / max(drawn.shape[:2])
    size = [max(1, round(length * scale)) for length in drawn.shape[1::-1]]
    drawn = cv2.resize(drawn, size, interpolation=cv2.INTER_AREA)
    square = np.full((side, side, 3), 255, np.uint8)
    square[: drawn.shape[0], : drawn.shape[1]] = drawn
    return square
