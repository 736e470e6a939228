"""Training and validation loaders that both Detectron2 builds share."""

import ctypes
import itertools
import logging
import os
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
from microplastics.utils.system import seeded

logger = logging.getLogger(__name__)


class BatchStream(Sampler[list[tuple[int, int]]]):
    """Infinite stream of batches that can start anywhere.

    Images of like orientation share a batch, as in Detectron2's
    ``AspectRatioGroupedDataset``, but grouped by what the data set says of their sizes, before
    anything is read: skipping to batch k costs microseconds a batch.
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
            groups: group number of each image; ``None`` puts all into one.
            batch_size: images per batch on this process.
            start: number of batches that are skipped.
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
        """Lists of ``(index in the data set, position in the stream)``."""
        return itertools.islice(self._batches(), self._start, None)


def set_factors(
    sizes: Sequence[int], weights: Sequence[float], names: Sequence[str]
) -> torch.Tensor:
    """How often an epoch shows each image, so that the sets are drawn in proportion to weights.

    An epoch stays as long as that of the plain concatenation.

    Args:
        sizes: images of each set.
        weights: relative number of draws from each set.
        names: of the sets, for the log.

    Returns:
        float32 (N,), the sets one after the other; the sum is N.
    """
    total, parts = sum(sizes), []
    weights = [weight / max(weights) for weight in weights]  # huge ones would sum to infinity
    for size, weight, name in zip(sizes, weights, names, strict=True):
        share = weight / sum(weights)
        factor = share * total / size
        logger.info(
            "%s: %.1f %% of the images drawn, each of its %d %.3g times an epoch.",
            name,
            100 * share,
            size,
            factor,
        )
        parts.append(torch.full((size,), factor))
    return torch.cat(parts)


def repeat_factors(
    dataset_dicts: list[dict[str, Any]], threshold: float, class_names: Sequence[str]
) -> torch.Tensor:
    """How often an epoch shows each image, so that rare classes are seen more often.

    That is Detectron2's ``RepeatFactorTrainingSampler`` after LVIS (Gupta, Dollar and Girshick
    2019, appendix B.2): with f the share of images that hold a class, an image is repeated
    max(1, sqrt(threshold / f)) times for the rarest class on it; a blank comes once.

    Args:
        dataset_dicts: the images in Detectron2's data set format.
        threshold: share of images below which a class is repeated.
        class_names: by contiguous id, for the printed table.

    Returns:
        float32 (N,).
    """
    factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
        dataset_dicts, threshold
    )
    holding = Counter(
        c for d in dataset_dicts for c in {a["category_id"] for a in d["annotations"]}
    )
    rows = []
    for index, name in enumerate(class_names):
        share = holding[index] / len(dataset_dicts)
        repeat = max(1.0, (threshold / share) ** 0.5) if share else None
        rows.append((name, holding[index], f"{100 * share:.1f} %", repeat))
    logger.info(
        "Repeat factors at DATALOADER.REPEAT_THRESHOLD %g (an epoch shows %.0f images for %d):\n%s",
        threshold,
        factors.sum(),
        len(dataset_dicts),
        tabulate(rows, headers=["class", "images", "share", "repeat factor"], floatfmt=".2f"),
    )
    if bool((factors == 1).all()):
        logger.warning(
            "No image is repeated: every class is on more than %g of the images; raise "
            "DATALOADER.REPEAT_THRESHOLD above the share of the rarest class.",
            threshold,
        )
    return factors


# From <linux/prctl.h>.
_PR_SET_PDEATHSIG = 1

Mapper = Callable[[dict[str, Any]], dict[str, Any]]


def check_datasets(cfg: CfgNode, splits: tuple[str, ...] = ("TRAIN", "TEST")) -> CfgNode:
    """Register ``JSON:IMAGES`` entries of the config and check every JSON it names.

    Args:
        cfg: the config; it is not changed.
        splits: which of ``DATASETS.TRAIN`` and ``DATASETS.TEST`` to check.

    Returns:
        A copy whose data sets are all registered names.

    Raises:
        UserError: a data set is unknown, missing, broken or has other classes than the config.
    """
    cfg = cfg.clone()
    cfg.defrost()
    for split in splits:
        names = resolve_datasets(cfg.DATASETS[split])
        if not names:
            raise UserError(
                f"DATASETS.{split} is empty; name a data set or write path/to.json:path/to/images."
            )
        cfg.DATASETS[split] = names
        for number, name in enumerate(names):
            DatasetCatalog.get(name)
            metadata = MetadataCatalog.get(name)
            json_file = metadata.get("json_file")
            if json_file is None:  # registered by other code, which answers for it
                continue
            # A set of blanks may follow one with particles.
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
                "give both JSON files the same categories with the same ids."
            )


def _check_weights(cfg: CfgNode) -> None:
    weights, names = cfg.DATASETS.TRAIN_WEIGHTS, cfg.DATASETS.TRAIN
    if weights and len(weights) != len(names):
        raise UserError(
            f"DATASETS.TRAIN_WEIGHTS has {len(weights)} numbers for {len(names)} data sets in "
            "DATASETS.TRAIN; give one weight for each."
        )
    for weight in weights:
        number = isinstance(weight, (int, float)) and not isinstance(weight, bool)
        if not number or not 0 < weight < float("inf"):
            raise UserError(
                f"DATASETS.TRAIN_WEIGHTS holds {weight!r}; give numbers above 0, and leave out a "
                "data set that is not to be seen."
            )


class _Mapped(Dataset):
    """Maps data set dicts, each with randomness of its own position in the stream."""

    def __init__(self, dataset_dicts: list[dict[str, Any]], mapper: Mapper, seed_key: tuple):
        self._dicts = dataset_dicts
        self._mapper = mapper
        self._seed_key = seed_key

    def __len__(self) -> int:
        return len(self._dicts)

    def __getitem__(self, item: tuple[int, int]) -> dict[str, Any] | UserError:
        index, position = item
        try:
            with seeded(*self._seed_key, position):
                return self._mapper(self._dicts[index])
        except UserError as error:
            # Raised by the main process: DataLoader would bury the sentence in a traceback.
            return error


def _collate(batch: list) -> list:
    return batch


def _init_worker(_worker_id: int) -> None:
    # The main process decides when to stop: a worker that dies of Ctrl-C first would take the
    # checkpoint with it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _die_with_parent()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)


def _die_with_parent() -> None:
    """Let the kernel end this worker when the main process is killed (Linux alone).

    A worker that is blocked writing a batch into a pipe that it holds open itself would never
    notice.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def effective_workers(configured: int) -> int:
    """``DATALOADER.NUM_WORKERS`` cut to the cores that this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    share = max(1, (cores or 1) // max(1, comm.get_local_size()))
    if configured > share:
        logger.info("DATALOADER.NUM_WORKERS %d cut to the %d cores here.", configured, share)
    return min(configured, share)


def _raise_errors(loader: DataLoader) -> Iterator[list[dict[str, Any]]]:
    for batch in loader:
        for item in batch:
            if isinstance(item, UserError):
                raise item
        yield batch


class TrainLoader:
    """Endless batches for training that can start at any iteration.

    Iterating yields lists of mapped dicts. Batch k depends on the seed, the rank and k alone.
    """

    def __init__(self, cfg: CfgNode, mapper: Mapper | None = None, seed: int | None = None):
        """
        Args:
            cfg: a config whose data sets are registered (:func:`check_datasets`).
            mapper: what turns a data set dict into model input; the project's own by default.
            seed: seed of order and augmentation, the same on every rank; ``cfg.SEED`` by
                default, or a random one where that is negative.
        """
        world_size = comm.get_world_size()
        if cfg.SOLVER.IMS_PER_BATCH < 1 or cfg.SOLVER.IMS_PER_BATCH % world_size:
            raise UserError(
                f"SOLVER.IMS_PER_BATCH {cfg.SOLVER.IMS_PER_BATCH} cannot be shared evenly by "
                f"{world_size} processes; set it to a multiple of {world_size}."
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
            # Drawn like the images themselves: a large set must not crowd out a small one.
            self._mapper.partners = self.dataset_dicts
            if self._factors is not None:
                self._mapper.partner_weights = self._factors.double().numpy()

    @property
    def images_per_epoch(self) -> float:
        """Images that one pass of the sampler shows, on all ranks together."""
        if self._factors is None:
            return float(len(self.dataset_dicts))
        return float(self._factors.double().sum())

    @property
    def image_side(self) -> int:
        """Median of the shorter sides of the training images, or of their windows, in px.

        It tells a predictor how large the network is used to see things.
        """
        return int(np.median([min(d["width"], d["height"]) for d in self.dataset_dicts]))

    def _repeat_factors(self) -> torch.Tensor | None:
        """How often an epoch shows each image, float32 (N,); None where each comes once."""
        name = self._cfg.DATALOADER.SAMPLER_TRAIN
        if name not in ("TrainingSampler", "RepeatFactorTrainingSampler"):
            raise UserError(
                f"DATALOADER.SAMPLER_TRAIN {name} is not known here; use TrainingSampler or "
                "RepeatFactorTrainingSampler."
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
        """Batches from iteration ``start_iter`` on.

        Raises:
            UserError: an image of the batch cannot be read.
        """
        batches = BatchStream(self._sampler(), self._groups, self.batch_size, start_iter)
        loader = DataLoader(
            _Mapped(self.dataset_dicts, self._mapper, (self.seed, comm.get_rank())),
            batch_sampler=batches,
            num_workers=self._workers,
            collate_fn=_collate,
            worker_init_fn=_init_worker,
        )
        return _raise_errors(loader)

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        return self.iterate(0)


def training_dicts(cfg: CfgNode) -> list[dict[str, Any]]:
    """The images that training will see, after the filter of empty ones.

    Raises:
        UserError: none is left.
    """
    return _training_sets(cfg)[0]


def _training_sets(cfg: CfgNode) -> tuple[list[dict[str, Any]], list[int]]:
    """The images of all training sets one after the other, and how many each set has."""
    names = list(cfg.DATASETS.TRAIN)
    # The filter tells no set from another: with weights each is loaded by itself.
    groups = [[name] for name in names] if cfg.DATASETS.TRAIN_WEIGHTS else [names]
    dicts, sizes = [], []
    for group in groups:
        part = _filtered_dicts(group, cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS)
        if cfg.INPUT.TILE.SIZE > 0:
            part = _tiled(part, cfg)
            if not part:
                raise UserError(
                    f"No window of {', '.join(group)} is left to train on: none holds a particle, "
                    f"and INPUT.TILE.EMPTY_SHARE is {cfg.INPUT.TILE.EMPTY_SHARE}; raise it, or "
                    "leave the data set out."
                )
        dicts += part
        sizes.append(len(part))
    return dicts, sizes


def _tiled(dicts: list[dict[str, Any]], cfg: CfgNode) -> list[dict[str, Any]]:
    """Windows of the images. Their blanks are chosen by EMPTY_SHARE, not by the filter."""
    node = cfg.INPUT.TILE
    limits = cfg.INPUT.MIN_VISIBLE_SHARE, cfg.INPUT.MIN_MASK_PIXELS
    return tile_dicts(dicts, node.SIZE, node.OVERLAP, *limits, node.EMPTY_SHARE)


def _filtered_dicts(names: list[str], filter_empty: bool) -> list[dict[str, Any]]:
    try:
        return get_detection_dataset_dicts(names, filter_empty=filter_empty)
    except AssertionError as error:
        raise UserError(
            f"{', '.join(names)} has no annotated image to train on; annotate some, "
            "or set DATALOADER.FILTER_EMPTY_ANNOTATIONS False to train on blanks too."
        ) from error


class _Shard(Dataset):
    """Every ``world_size``-th image, so that no rank gets the last images alone."""

    def __init__(self, dataset_dicts: list[dict[str, Any]], mapper: Mapper):
        self._dicts = dataset_dicts[comm.get_rank() :: comm.get_world_size()]
        self._mapper = mapper

    def __len__(self) -> int:
        return len(self._dicts)

    def __getitem__(self, index: int) -> dict[str, Any] | UserError:
        try:
            return self._mapper(self._dicts[index])
        except UserError as error:
            return error


class ValidationLoader:
    """The images of one data set, one at a time, each on exactly one rank."""

    def __init__(self, cfg: CfgNode, dataset_name: str, mapper: Mapper | None = None):
        """
        Args:
            cfg: the config.
            dataset_name: a registered data set.
            mapper: the project's own for validation by default (annotations kept).
        """
        self.dataset_name = dataset_name
        dicts = DatasetCatalog.get(dataset_name)
        mapper = mapper or MicroplasticsDatasetMapper(cfg, is_train=False)
        self._shard = _Shard(dicts, mapper)
        self._workers = effective_workers(cfg.DATALOADER.NUM_WORKERS)

    def __len__(self) -> int:
        return len(self._shard)

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        loader = DataLoader(
            self._shard,
            batch_size=1,
            num_workers=min(self._workers, len(self._shard)),
            collate_fn=_collate,
            worker_init_fn=_init_worker,
        )
        return _raise_errors(loader)
