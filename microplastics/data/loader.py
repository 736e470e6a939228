"""Training and validation loaders."""

import ctypes
import itertools
import logging
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog, get_detection_dataset_dicts
from detectron2.data.samplers import RepeatFactorTrainingSampler, TrainingSampler
from detectron2.utils import comm
from tabulate import tabulate
from torch.utils.data import DataLoader, Dataset, Sampler

from microplastics.data.augmentation.build import check_augmentation
from microplastics.data.catalog import resolve_datasets
from microplastics.data.coco import check_instances
from microplastics.data.mapper import MicroplasticsDatasetMapper
from microplastics.data.tiling import tile_dicts
from microplastics.modeling.interface import num_classes
from microplastics.utils.errors import UserError
from microplastics.utils.system import available_processors, seeded

logger = logging.getLogger(__name__)

# From <linux/prctl.h>.
_PR_SET_PDEATHSIG = 1
Mapper = Callable[[dict[str, Any]], dict[str, Any]]


class BatchStream(Sampler[list[tuple[int, int]]]):
    """Infinite, resumable stream of batches.

    Batches have images of one orientation, as in Detectron2's ``AspectRatioGroupedDataset``, but
    grouped by the sizes in the data set, before anything is read: skipping a batch takes
    microseconds.
    """

    def __init__(
        self,
        sampler: Sampler[int],
        groups: Sequence[int] | None,
        batch_size: int,
        start: int = 0,
    ):
        """
        Args:
            sampler: infinite stream of data set indices, the same at each iteration (Detectron2's
                ``TrainingSampler`` with a seed).
            groups: group of each image; None puts all into one.
            batch_size: images per batch of this process.
            start: number of batches to skip.
        """
        self._sampler = sampler
        self._groups = groups
        self._batch_size = batch_size
        self._start = start

    def _batches(self) -> Iterator[list[tuple[int, int]]]:
        buckets: dict[int, list[tuple[int, int]]] = {}
        for position, index in enumerate(self._sampler):
            group = 0 if self._groups is None else self._groups[index]
            bucket = buckets.setdefault(group, [])
            bucket.append((int(index), position))
            if len(bucket) == self._batch_size:
                yield bucket
                buckets[group] = []

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """Yield lists of ``(index in the data set, position in the stream)``."""
        return itertools.islice(self._batches(), self._start, None)


def set_factors(
    sizes: Sequence[int], weights: Sequence[float], names: Sequence[str]
) -> torch.Tensor:
    """Return repeat factors that draw the data sets in proportion to weights.

    An epoch has as many images as all sets together.

    Args:
        sizes: images of each set.
        weights: relative number of draws from each set.
        names: of the sets, for the log.

    Returns:
        float32 (N,), number of times that an epoch shows each image of the concatenated sets; the
        sum is N.
    """
    total, parts = sum(sizes), []
    weights = [weight / max(weights) for weight in weights]  # huge ones would sum to infinity
    for size, weight, name in zip(sizes, weights, names, strict=True):
        fraction = weight / sum(weights)
        factor = fraction * total / size
        logger.info(
            "%s: %.1f %% of the images drawn, each of its %d %.3g times an epoch.",
            name,
            100 * fraction,
            size,
            factor,
        )
        parts.append(torch.full((size,), factor))
    return torch.cat(parts)


def repeat_factors(
    dataset_dicts: list[dict[str, Any]], threshold: float, class_names: Sequence[str]
) -> torch.Tensor:
    """Return repeat factors that show rare classes more often.

    As Detectron2's ``RepeatFactorTrainingSampler`` after LVIS (Gupta, Dollar and Girshick 2019,
    appendix B.2): with f the fraction of images that have a class, an image is repeated
    max(1, sqrt(threshold / f)) times for its rarest class; a blank image is shown once.

    Args:
        dataset_dicts: the images in Detectron2's data set format.
        threshold: fraction of images below which a class is repeated.
        class_names: by contiguous id, for the log.

    Returns:
        float32 (N,), number of times that an epoch shows each image.
    """
    factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
        dataset_dicts, threshold
    )
    holding = Counter(
        c for d in dataset_dicts for c in {a["category_id"] for a in d["annotations"]}
    )
    rows = []
    for index, name in enumerate(class_names):
        fraction = holding[index] / len(dataset_dicts)
        repeat = max(1.0, (threshold / fraction) ** 0.5) if fraction else None
        rows.append((name, holding[index], f"{100 * fraction:.1f} %", repeat))
    logger.info(
        "Repeat factors at DATALOADER.REPEAT_THRESHOLD %g (an epoch shows %.0f images for %d):\n%s",
        threshold,
        factors.sum(),
        len(dataset_dicts),
        tabulate(rows, headers=["class", "images", "fraction", "repeat factor"], floatfmt=".2f"),
    )
    if bool((factors == 1).all()):
        logger.warning(
            "No image is repeated: every class is on more than %g of the images; raise "
            "DATALOADER.REPEAT_THRESHOLD above the fraction of the rarest class.",
            threshold,
        )
    return factors


def check_datasets(cfg: CfgNode, splits: tuple[str, ...] = ("TRAIN", "TEST")) -> CfgNode:
    """Register the ``JSON:IMAGES`` entries of the config and check every JSON.

    Args:
        cfg: the config; it is not changed.
        splits: which of ``DATASETS.TRAIN`` and ``DATASETS.TEST`` to check.

    Returns:
        A copy whose data sets are all registered names.

    Raises:
        UserError: a data set is unknown, missing or broken, ``classes_mismatch``, or
            ``config_invalid``.
    """
    cfg = cfg.clone()
    cfg.defrost()
    for split in splits:
        names = resolve_datasets(cfg.DATASETS[split])
        if not names:
            raise UserError(
                f"DATASETS.{split} is empty; expected a data set or path/to.json:path/to/images.",
                code="config_invalid",
            )
        cfg.DATASETS[split] = names
        for number, name in enumerate(names):
            DatasetCatalog.get(name)
            metadata = MetadataCatalog.get(name)
            json_file = metadata.get("json_file")
            if json_file is None:  # registered by other code, which is responsible for it
                continue
            # A set of blank images may follow one with particles.
            blanks = number > 0 and not cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
            if comm.is_main_process():
                check_instances(
                    json_file,
                    metadata.image_root,
                    num_classes(cfg),
                    training=split == "TRAIN" and not blanks,
                    max_pixels=cfg.INPUT.MAX_PIXELS,
                )
    if "TRAIN" in splits:
        _check_weights(cfg)
    if "TRAIN" in splits and "TEST" in splits:
        _check_same_classes(cfg)
    cfg.freeze()
    comm.synchronize()
    return cfg


def _check_same_classes(cfg: CfgNode) -> None:
    names = [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]
    first = MetadataCatalog.get(names[0]).get("thing_classes")
    for name in names[1:]:
        classes = MetadataCatalog.get(name).get("thing_classes")
        if classes != first:
            raise UserError(
                f"Data sets {names[0]} and {name} differ in their classes: {first} and {classes}; "
                "give both JSON files the same categories with the same ids.",
                code="classes_mismatch",
            )


def _check_weights(cfg: CfgNode) -> None:
    weights, names = cfg.DATASETS.TRAIN_WEIGHTS, cfg.DATASETS.TRAIN
    if weights and len(weights) != len(names):
        raise UserError(
            f"DATASETS.TRAIN_WEIGHTS has {len(weights)} numbers for {len(names)} data sets in "
            "DATASETS.TRAIN; expected one for each.",
            code="config_invalid",
        )
    for weight in weights:
        number = isinstance(weight, (int, float)) and not isinstance(weight, bool)
        if not number or not 0 < weight < float("inf"):
            raise UserError(
                f"DATASETS.TRAIN_WEIGHTS contains {weight!r}; expected numbers above 0 (remove a "
                "data set that is not used).",
                code="config_invalid",
            )


class _Mapped(Dataset):
    """Data set dicts, mapped; each seeded by its position in the stream."""

    def __init__(self, dataset_dicts: list[dict[str, Any]], mapper: Mapper, *seed_key: int):
        self._dicts, self._mapper, self._seed_key = dataset_dicts, mapper, seed_key

    def __getitem__(self, item: tuple[int, int]) -> dict[str, Any] | UserError:
        index, position = item
        try:
            with seeded(*self._seed_key, position):
                return self._mapper(self._dicts[index])
        except UserError as error:
            # Raised by the main process: DataLoader would hide the sentence in a traceback.
            return error


def _collate(batch: list) -> list:
    return batch


def _init_worker(_worker_id: int) -> None:
    # Only the main process reacts to signals: a worker that dies first would prevent the last
    # checkpoint.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _die_with_parent()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)


def _die_with_parent() -> None:
    """Ask the kernel to kill this worker when its parent dies (Linux only).

    A worker blocked in writing a batch to a pipe would never notice.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def effective_workers(configured: int) -> int:
    """Return ``DATALOADER.NUM_WORKERS``, limited to this process's processors."""
    limit = max(1, available_processors() // max(1, comm.get_local_size()))
    if configured > limit:
        logger.info("DATALOADER.NUM_WORKERS %d limited to %d processors.", configured, limit)
    return min(configured, limit)


def _raise_errors(loader: DataLoader) -> Iterator[list[dict[str, Any]]]:
    for batch in loader:
        for item in batch:
            if isinstance(item, UserError):
                raise item
        yield batch


class TrainLoader:
    """Infinite training batches that can start at any iteration.

    Iterating yields lists of mapped dicts. Batch k depends only on the seed, the rank and k.
    """

    def __init__(self, cfg: CfgNode, mapper: Mapper | None = None, seed: int | None = None):
        """
        Args:
            cfg: a config whose data sets are registered (:func:`check_datasets`).
            mapper: maps a data set dict to the input of the model; the project's own by default.
            seed: seed of order and augmentation, the same on every rank; ``cfg.SEED`` by
                default, or a random one if that is negative.

        Raises:
            UserError: ``config_invalid`` or ``dataset_empty``.
        """
        world_size = comm.get_world_size()
        if cfg.SOLVER.IMS_PER_BATCH < 1 or cfg.SOLVER.IMS_PER_BATCH % world_size:
            raise UserError(
                f"SOLVER.IMS_PER_BATCH is {cfg.SOLVER.IMS_PER_BATCH}; expected a multiple of the "
                f"{world_size} processes.",
                code="config_invalid",
            )
        if seed is None:
            seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
        self.seed = int(seed)
        check_augmentation(cfg)
        self.dataset_dicts, self._set_sizes = _training_sets(cfg)
        self.batch_size = cfg.SOLVER.IMS_PER_BATCH // world_size
        self._mapper = mapper or MicroplasticsDatasetMapper(cfg, is_train=True)
        self._groups = (
            [int(d["width"] > d["height"]) for d in self.dataset_dicts]
            if cfg.DATALOADER.ASPECT_RATIO_GROUPING
            else None
        )
        self._workers = effective_workers(cfg.DATALOADER.NUM_WORKERS)
        self._cfg = cfg

        self._factors = self._repeat_factors()
        if getattr(self._mapper, "mixes", False):
            # Drawn like the images: a large set must not crowd out a small one.
            self._mapper.partners = self.dataset_dicts
            if self._factors is not None:
                self._mapper.partner_weights = self._factors.double().numpy()

    @property
    def images_per_epoch(self) -> float:
        """Number of images in one pass of the sampler, over all ranks."""
        if self._factors is None:
            return float(len(self.dataset_dicts))
        return float(self._factors.double().sum())

    @property
    def image_side(self) -> int:
        """Median of the shorter sides of the training images or windows, in px.

        Prediction tiles large images by it, so that particles have their size of training.
        """
        return int(np.median([min(d["width"], d["height"]) for d in self.dataset_dicts]))

    def _repeat_factors(self) -> torch.Tensor | None:
        """Return how often an epoch shows each image, float32 (N,); None if each once."""
        name = self._cfg.DATALOADER.SAMPLER_TRAIN
        if name not in ("TrainingSampler", "RepeatFactorTrainingSampler"):
            raise UserError(
                f"DATALOADER.SAMPLER_TRAIN is {name}; expected TrainingSampler or "
                "RepeatFactorTrainingSampler.",
                code="config_invalid",
            )
        factors = None
        if self._cfg.DATASETS.TRAIN_WEIGHTS:
            names, weights = self._cfg.DATASETS.TRAIN, self._cfg.DATASETS.TRAIN_WEIGHTS
            factors = set_factors(self._set_sizes, weights, names)
        if name == "RepeatFactorTrainingSampler":
            classes = MetadataCatalog.get(self._cfg.DATASETS.TRAIN[0]).get("thing_classes", [])
            threshold = self._cfg.DATALOADER.REPEAT_THRESHOLD
            repeats = repeat_factors(self.dataset_dicts, threshold, classes)
            factors = repeats if factors is None else factors * repeats
        return factors

    def _sampler(self):
        if self._factors is None:
            return TrainingSampler(len(self.dataset_dicts), seed=self.seed)
        return RepeatFactorTrainingSampler(self._factors, seed=self.seed)

    def iterate(self, start_iter: int = 0) -> Iterator[list[dict[str, Any]]]:
        """Return the batches from iteration ``start_iter`` on.

        Raises:
            UserError: an image of the batch cannot be read.
        """
        batches = BatchStream(self._sampler(), self._groups, self.batch_size, start_iter)
        loader = DataLoader(
            _Mapped(self.dataset_dicts, self._mapper, self.seed, comm.get_rank()),
            batch_sampler=batches,
            num_workers=self._workers,
            collate_fn=_collate,
            worker_init_fn=_init_worker,
        )
        return _raise_errors(loader)

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        return self.iterate(0)


def training_dicts(cfg: CfgNode) -> list[dict[str, Any]]:
    """Return the images or windows of training, after the filter of empty ones.

    Raises:
        UserError: ``dataset_empty``.
    """
    return _training_sets(cfg)[0]


def _training_sets(cfg: CfgNode) -> tuple[list[dict[str, Any]], list[int]]:
    """Return the images of all training sets concatenated, and the size of each set."""
    names = list(cfg.DATASETS.TRAIN)
    # The filter merges the sets: with weights each is loaded separately.
    groups = [[name] for name in names] if cfg.DATASETS.TRAIN_WEIGHTS else [names]
    dicts, sizes = [], []
    for group in groups:
        part = _filtered_dicts(group, cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS)
        if cfg.INPUT.TILE.SIZE > 0:
            part = _tiled(part, cfg)
            if not part:
                raise UserError(
                    f"{', '.join(group)} has no window to train on: none has a particle, and "
                    f"INPUT.TILE.EMPTY_SHARE is {cfg.INPUT.TILE.EMPTY_SHARE}; raise it, or remove "
                    "the data set.",
                    code="dataset_empty",
                )
        dicts += part
        sizes.append(len(part))
    return dicts, sizes


def _tiled(dicts: list[dict[str, Any]], cfg: CfgNode) -> list[dict[str, Any]]:
    """Return the windows of the images; empty ones are chosen by EMPTY_SHARE, not the filter."""
    node = cfg.INPUT.TILE
    limits = cfg.INPUT.MIN_VISIBLE_SHARE, cfg.INPUT.MIN_MASK_PIXELS
    return tile_dicts(dicts, node.SIZE, node.OVERLAP, *limits, node.EMPTY_SHARE)


def _filtered_dicts(names: list[str], filter_empty: bool) -> list[dict[str, Any]]:
    try:
        return get_detection_dataset_dicts(names, filter_empty=filter_empty)
    except AssertionError as error:
        raise UserError(
            f"{', '.join(names)} has no annotated image to train on; annotate some, or set "
            "DATALOADER.FILTER_EMPTY_ANNOTATIONS False to include blank images.",
            code="dataset_empty",
        ) from error


class ValidationLoader:
    """The images of one data set, one at a time, each on exactly one rank."""

    def __init__(self, cfg: CfgNode, dataset_name: str, mapper: Mapper | None = None):
        """
        Args:
            cfg: the config.
            dataset_name: a registered data set.
            mapper: the project's own for validation by default, which keeps annotations.
        """
        self.dataset_name = dataset_name
        # Every n-th image, so that the ranks have equal numbers and kinds of images.
        self._dicts = DatasetCatalog.get(dataset_name)[comm.get_rank() :: comm.get_world_size()]
        self._mapper = mapper or MicroplasticsDatasetMapper(cfg, is_train=False)
        self._workers = effective_workers(cfg.DATALOADER.NUM_WORKERS)

    def __len__(self) -> int:
        return len(self._dicts)

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        loader = DataLoader(
            _Mapped(self._dicts, self._mapper, 0),
            batch_sampler=[[(index, index)] for index in range(len(self))],
            num_workers=min(self._workers, len(self)),
            collate_fn=_collate,
            worker_init_fn=_init_worker,
        )
        return _raise_errors(loader)
