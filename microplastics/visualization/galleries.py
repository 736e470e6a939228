"""Pictures of annotations, batches, augmentations and results.

All raise UserError for data that cannot be used and pictures that cannot be written.
"""

import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from detectron2.data.detection_utils import convert_image_to_rgb
from detectron2.structures import Boxes, Instances
from tqdm import tqdm

from microplastics.data.catalog import resolve_datasets
from microplastics.data.coco import is_box
from microplastics.data.images import read_image
from microplastics.data.loader import TrainLoader, check_datasets, training_dicts
from microplastics.data.mapper import MicroplasticsDatasetMapper
from microplastics.structures.crop_masks import CropMasks
from microplastics.utils.errors import UserError
from microplastics.utils.io import read_json
from microplastics.utils.system import seeded
from microplastics.visualization import draw

_RIGHT_FILE = "give the coco_instances_results.json that an evaluation wrote"

# Three panels of this side still open in any viewer.
_PANEL_SIDE = 2400
_COLUMNS = 4
_GAP = 8


def read_results(path: str | os.PathLike) -> list[dict[str, Any]]:
    """Read COCO results, a JSON list, and check every field that is used."""
    results = read_json(path, list, f"a list of predictions; {_RIGHT_FILE}")
    for index, result in enumerate(results):
        if not _is_result(result):
            raise UserError(
                f"Prediction number {index + 1} of {os.fspath(path)} is not usable; expected "
                "image_id, category_id, score, and bbox [x, y, width, height] or segmentation: "
                f"{_RIGHT_FILE}.",
                code="file_invalid",
            )
    return results


def _is_result(result: Any) -> bool:
    if not isinstance(result, dict) or not isinstance(result.get("image_id"), (int, str)):
        return False
    box, score = result.get("bbox"), result.get("score")
    # False for NaN.
    scored = type(score) in (int, float) and -1e9 <= score <= 1e9
    placed = "segmentation" in result if box is None else is_box(box) and min(box[2:]) >= 0
    return scored and placed and type(result.get("category_id")) is int


def results_to_instances(
    results: Sequence[dict[str, Any]],
    image_size: tuple[int, int],
    contiguous_ids: dict[int, int],
    names: str,
) -> Instances:
    """Turn the results of one image into Detectron2 ``Instances``, with masks if there are any.

    Args:
        results: of :func:`read_results`, all of one image.
        image_size: height and width in px.
        contiguous_ids: class number of each COCO category id.
        names: file, data set and image in words, for the errors.
    """
    unknown = {r["category_id"] for r in results} - set(contiguous_ids)
    if unknown:
        words = f"the category {min(unknown)} is predicted, and the data set has"
        raise _misfit(names, f"{words} {', '.join(map(str, contiguous_ids))}")
    instances = Instances(image_size)
    instances.scores = torch.tensor([float(r["score"]) for r in results])
    classes = [contiguous_ids[r["category_id"]] for r in results]
    instances.pred_classes = torch.tensor(classes, dtype=torch.int64)
    masks = [r["segmentation"] for r in results if "segmentation" in r]
    if masks:
        if len(masks) < len(results):
            raise _misfit(names, "some predictions have masks, others not")
        try:
            instances.pred_masks = CropMasks.from_coco(masks, image_size)
        except ValueError as error:
            raise _misfit(names, f"a predicted mask does not fit ({error})") from error
    if all(r.get("bbox") for r in results):
        boxes = np.array([r["bbox"] for r in results], dtype=np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
    else:
        boxes = instances.pred_masks.get_bounding_boxes().tensor.numpy()
    frame = np.array(image_size[::-1] * 2, dtype=np.float64)
    if ((boxes[:, :2] > frame[:2]) | (boxes[:, 2:] < 0)).any():
        size = f"{frame[0]:.0f} x {frame[1]:.0f} px"
        raise _misfit(names, f"a predicted box lies outside the image of {size}")
    instances.pred_boxes = Boxes(torch.from_numpy(boxes.clip(0, frame)))
    return instances


def _misfit(names: str, words: str) -> UserError:
    return UserError(
        f"{names} do not belong together: {words}; name the data set that was evaluated with "
        "--dataset.",
        code="annotations_invalid",
    )


def draw_annotations(
    cfg: CfgNode, output_dir: str, limit: int | None = None, show: bool = False
) -> int:
    """Draw the annotations of every image of DATASETS.TRAIN, or of the first ``limit``.

    Args:
        cfg: the config.
        output_dir: folder for the pictures.
        limit: number of images to draw; all if ``None``.
        show: show them in a window instead.

    Returns:
        The number of pictures.
    """
    names = resolve_datasets(cfg.DATASETS.TRAIN)
    if not names:
        raise UserError(
            "DATASETS.TRAIN is empty; give --config-file, or name a data set with "
            "DATASETS.TRAIN '(\"path/to.json:path/to/images\",)'.",
            code="option_missing",
        )
    pairs = [(dic, MetadataCatalog.get(name)) for name in names for dic in DatasetCatalog.get(name)]
    files = draw.picture_names([dic["file_name"] for dic, _ in pairs])

    def pictures() -> Iterator[tuple[str, np.ndarray]]:
        for (dic, metadata), file in zip(pairs, files, strict=True):
            image = read_rgb(dic, cfg.INPUT.MAX_PIXELS)
            panel = _panel(os.path.basename(dic["file_name"]), image, dic, metadata)
            yield file, draw.side_by_side([panel])

    return _deliver(pictures(), len(pairs), output_dir, limit, show)


def draw_batches(
    cfg: CfgNode, output_dir: str, limit: int | None = None, show: bool = False
) -> int:
    """Draw what training will see: the augmented images in the order of their batches.

    One epoch if there is no ``limit``; names begin with the place in that order. Else as
    :func:`draw_annotations`.
    """
    cfg = check_datasets(cfg, splits=("TRAIN",))
    metadata = MetadataCatalog.get(cfg.DATASETS.TRAIN[0])
    loader = TrainLoader(cfg)

    def pictures() -> Iterator[tuple[str, np.ndarray]]:
        for place, item in enumerate(itertools.chain.from_iterable(loader)):
            path = Path(item["file_name"])
            title = f"Batch {place // loader.batch_size}, {path.name}"
            panel = _panel(title, mapped_rgb(item, cfg), item["instances"], metadata)
            yield f"{place:06d}_{path.stem}.jpg", draw.side_by_side([panel])

    return _deliver(pictures(), limit or len(loader.dataset_dicts), output_dir, limit, show)


def draw_results(
    results_file: str,
    dataset: str,
    output_dir: str,
    threshold: float = 0.5,
    limit: int | None = None,
) -> tuple[int, list[float]]:
    """Draw photograph, truth and prediction side by side for the images of a data set.

    Args:
        results_file: ``coco_instances_results.json``.
        dataset: a registered data set, or ``path/to.json:path/to/images``.
        output_dir: folder for the pictures.
        threshold: least score of the predictions that are drawn.
        limit: number of images to draw; all if ``None``.

    Returns:
        The number of pictures, and the scores of all predictions of the file.
    """
    (name,) = resolve_datasets(dataset)
    dicts, metadata = DatasetCatalog.get(name), MetadataCatalog.get(name)
    results = read_results(results_file)
    names = f"{results_file} and data set {name}"
    by_image: dict[Any, list[dict[str, Any]]] = {dic["image_id"]: [] for dic in dicts}
    for result in results:
        if result["image_id"] not in by_image:
            words = "a prediction is for an image that the data set lacks"
            raise _misfit(names, f"{words} (image id {result['image_id']!r})")
        by_image[result["image_id"]].append(result)
    files = draw.picture_names([dic["file_name"] for dic in dicts])
    ids = metadata.get("thing_dataset_id_to_contiguous_id", None)
    if ids is None:
        ids = {number: number for number in range(len(metadata.get("thing_classes", None) or ()))}

    def pictures() -> Iterator[tuple[str, np.ndarray]]:
        for dic, file in zip(dicts, files, strict=True):
            image = read_rgb(dic)
            of_image = f"{names} (image {os.path.basename(dic['file_name'])})"
            found = results_to_instances(by_image[dic["image_id"]], image.shape[:2], ids, of_image)
            found = found[found.scores >= threshold]
            yield file, compare(image, dic, found, metadata, threshold)

    count = _deliver(pictures(), len(dicts), output_dir, limit)
    return count, [result["score"] for result in results]


# By kind of error, unlike each other and the colours of Fiber, Fragment and Film, also for people
# who see no red, no green or no blue: a CIEDE2000 of 14 at least, by tests/visualization.
OUTCOME_COLORS = {
    "correct": (172, 172, 172),
    "missed": (170, 0, 0),
    "background": (204, 153, 255),
    "duplicate": (102, 221, 153),
    "class": (238, 204, 51),
    "localisation": (51, 17, 204),
    "both": (136, 51, 85),
    "ignored": (240, 240, 240),
}


def draw_outcomes(
    image: np.ndarray,
    dic: dict[str, Any],
    results: Sequence[dict[str, Any]],
    rows: pd.DataFrame,
    metadata: Metadata,
    side: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Draw true particles, and those that were counted, in the colour of their outcome.

    Args:
        image: (H, W, 3) uint8 RGB.
        dic: data set dict of the image.
        results: of the image, COCO's, in the order of the detections.
        rows: of the image in ``evaluation_particles.csv``.
        metadata: of the data set.
        side: longest side of the pictures in px.

    Returns:
        two pictures, (h, w, 3) uint8 RGB.
    """
    outcomes = _outcomes_of_truths(rows)
    annotations = [
        {**a, "category_id": _place(a["category_id"], outcomes.get(a["id"], "ignored"))}
        for a in dic["annotations"]
    ]
    found = rows[rows["detection"].notna()]
    ids = metadata.thing_dataset_id_to_contiguous_id
    chosen = [results[int(number)] for number in found["detection"]]
    instances = results_to_instances(chosen, image.shape[:2], ids, "evaluation_particles.csv")
    places = zip(instances.pred_classes.tolist(), found["outcome"], strict=True)
    instances.pred_classes = torch.tensor([_place(*p) for p in places], dtype=torch.int64)
    longer = max(image.shape[:2])
    scale = side / longer if longer > side else float(side // longer)
    judged = _judged_metadata(metadata)
    return (
        draw.draw_instances(image, {**dic, "annotations": annotations}, judged, scale),
        draw.draw_instances(image, instances, judged, scale),
    )


def _outcomes_of_truths(rows: pd.DataFrame) -> dict[int, str]:
    """The outcome of each true particle by its annotation's id: correct wins over errors."""
    rows = rows[rows["annotation"].notna() & ~rows["outcome"].isin(("duplicate", "both"))]
    right = rows["outcome"] == "correct"
    ordered = pd.concat([rows[~right], rows[right]])
    return dict(zip(ordered["annotation"].astype(int), ordered["outcome"], strict=True))


def _place(number: int, outcome: str) -> int:
    """The number of a class and an outcome in :func:`_judged_metadata`."""
    return number * len(OUTCOME_COLORS) + list(OUTCOME_COLORS).index(outcome)


def _judged_metadata(metadata: Metadata) -> Metadata:
    """Each class with each outcome as a class of its own; what is correct has no name."""
    pairs = list(itertools.product(metadata.thing_classes, OUTCOME_COLORS))
    names = ["" if outcome == "correct" else f"{name} {outcome}" for name, outcome in pairs]
    colors = [OUTCOME_COLORS[outcome] for _, outcome in pairs]
    return Metadata(name="judged", thing_classes=names, thing_colors=colors)


def compare(
    image: np.ndarray,
    dic: dict[str, Any],
    found: Instances,
    metadata: Metadata,
    threshold: float,
    max_side: int = _PANEL_SIDE,
) -> np.ndarray:
    """Set a photograph, its truth and its predictions side by side: (H, W, 3) uint8 RGB.

    Args:
        image: (H, W, 3) uint8 RGB.
        dic: its data set dict.
        found: predictions of at least ``threshold``.
        metadata: of the data set.
        threshold: for the caption.
        max_side: of each of the three panels, in px.
    """
    scale = draw.picture_scale(*image.shape[:2], max_side=max_side)
    return draw.side_by_side(
        [
            draw.Panel(draw.resize(image, scale), os.path.basename(dic["file_name"])),
            _panel("Truth", image, dic, metadata, scale),
            _panel(f"Predicted, score ≥ {threshold:g}", image, found, metadata, scale),
        ]
    )


def _panel(title: str, image, particles, metadata: Metadata, scale: float | None = None):
    """The particles of an image, with the number of each class."""
    if isinstance(particles, dict):
        classes = [a["category_id"] for a in particles["annotations"]]
    else:
        true = particles.has("gt_classes")
        classes = (particles.gt_classes if true else particles.pred_classes).tolist()
    picture = draw.draw_instances(image, particles, metadata, scale)
    return draw.Panel(picture, title, draw.class_legend(classes, metadata))


def read_rgb(dic: dict[str, Any], max_pixels: int | None = None) -> np.ndarray:
    """Read the photograph of a data set dict: (H, W, 3) uint8 RGB."""
    size = (dic["width"], dic["height"]) if "width" in dic else None
    image = read_image(dic["file_name"], expected_size=size, max_pixels=max_pixels)
    return np.ascontiguousarray(image[:, :, ::-1])


def mapped_rgb(mapped: dict[str, Any], cfg: CfgNode) -> np.ndarray:
    """Give the image of a mapped data set dict as training sees it: (H, W, 3) uint8 RGB."""
    image = convert_image_to_rgb(mapped["image"].permute(1, 2, 0), cfg.INPUT.FORMAT)
    return np.ascontiguousarray(image, dtype=np.uint8)


def _deliver(
    pictures: Iterator[tuple[str, np.ndarray]],
    total: int,
    output_dir: str,
    limit: int | None,
    show: bool = False,
) -> int:
    """Save or show the first pictures, with a progress bar."""
    count = total if limit is None else min(limit, total)
    drawn = itertools.islice(pictures, count)
    for name, picture in tqdm(drawn, total=count, desc="Drawing", unit="picture", disable=show):
        if show:
            draw.show_picture(picture, name)
        else:
            draw.save_picture(picture, os.path.join(output_dir, name))
    return count


def draw_augmentations(
    cfg: CfgNode, output: str | os.PathLike, side: int = 280, seed: int = 0
) -> int:
    """Draw the training image with most particles as each augmentation of INPUT.AUG makes it.

    Each is switched on by itself, with the config's values; nothing is flipped. ``side`` is that
    of each panel in px. The number of panels is returned.
    """
    if side < 32:
        raise UserError(
            f"--side is {side}; give the side of a panel in px, 32 or more.", code="option_invalid"
        )
    cfg = check_datasets(cfg, splits=("TRAIN",))
    metadata = MetadataCatalog.get(cfg.DATASETS.TRAIN[0])
    dicts = training_dicts(cfg)
    record = max(dicts, key=lambda d: len(d["annotations"]))
    panels = []
    for name in ("", *cfg.INPUT.AUG):
        mapper = MicroplasticsDatasetMapper(_alone(cfg, name), is_train=True)
        mapper.partners = dicts
        with seeded(seed):
            mapped = mapper(record)
        panels.append(draw.Panel(_picture(mapped, cfg, metadata, side), name or "As it is"))
    rows = [draw.side_by_side(panels[i : i + _COLUMNS]) for i in range(0, len(panels), _COLUMNS)]
    width = max(row.shape[1] for row in rows)
    for i, row in enumerate(rows):
        sides = ((0, _GAP), (0, width - row.shape[1]), (0, 0))
        rows[i] = np.pad(row, sides, constant_values=255)
    draw.save_picture(np.concatenate(rows), output)
    return len(panels)


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
    image = mapped_rgb(mapped, cfg)
    scale = side / max(image.shape[:2])
    drawn = draw.draw_instances(image, mapped["instances"], metadata, scale, labels=False)
    square = np.full((side, side, 3), 255, np.uint8)
    square[: drawn.shape[0], : drawn.shape[1]] = drawn
    return square
