"""Training and validation loaders."""

import itertools
import logging
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog, get_detection_dataset_dicts
from detectron2.data.build import trivial_batch_collator
from detectron2.data.samplers import RepeatFactorTrainingSampler, TrainingSampler
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset

from microplastics.data.catalog import fiber_classes, resolve_datasets
from microplastics.data.coco import check_instances
from microplastics.data.mapper import MicroplasticsDatasetMapper, check_augmentation
from microplastics.data.tiling import tile_dicts
from microplastics.modeling.interface import class_node
from microplastics.utils.errors import UserError, check_option
from microplastics.utils.system import available_processors, end_with_parent, seeded

logger = logging.getLogger(__name__)

Mapper = Callable[[dict[str, Any]], dict[str, Any]]


def batch_stream(
    sampler: Iterable[int], groups: Sequence[int], batch_size: int
) -> Iterator[list[tuple[int, int]]]:
    """Yield batches of one orientation, as Detectron2's ``AspectRatioGroupedDataset`` forms them.

    They are grouped by the sizes in the data set, before anything is read: skipping a batch takes
    microseconds.

    Args:
        sampler: infinite stream of data set indices.
        groups: group of each image of the data set.
        batch_size: images per batch of this process.

    Yields:
        Lists of (index in the data set, position in the stream).
    """
    buckets: dict[int, list[tuple[int, int]]] = {}
    for position, index in enumerate(sampler):
        bucket = buckets.setdefault(groups[index], [])
        bucket.append((int(index), position))
        if len(bucket) == batch_size:
            yield buckets.pop(groups[index])


def set_factors(
    sizes: Sequence[int], weights: Sequence[float], names: Sequence[str]
) -> torch.Tensor:
    """Return repeat factors that draw data sets of these sizes in proportion to their weights.

    Returns:
        float32 (N,), number of times that an epoch shows each image of the concatenated sets; the
        sum is N.
    """
    parts = []
    weights = [weight / max(weights) for weight in weights]  # huge ones would sum to infinity
    for size, weight, name in zip(sizes, weights, names, strict=True):
        fraction = weight / sum(weights)
        factor = fraction * sum(sizes) / size
        words = "%s: %.1f %% of the images drawn, each of its %d %.3g times an epoch."
        logger.info(words, name, 100 * fraction, size, factor)
        parts.append(torch.full((size,), factor))
    return torch.cat(parts)


def repeat_factors(dataset_dicts: list[dict[str, Any]], threshold: float) -> torch.Tensor:
    """Return repeat factors that show rare classes more often.

    As Detectron2's ``RepeatFactorTrainingSampler`` after LVIS (Gupta, Dollar and Girshick 2019,
    appendix B.2): with f the fraction of images that have a class, an image is repeated
    max(1, sqrt(threshold / f)) times for its rarest class; a blank image is shown once.

    Args:
        dataset_dicts: the images in Detectron2's data set format.
        threshold: fraction of images below which a class is repeated.

    Returns:
        float32 (N,), number of times that an epoch shows each image.
    """
    factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
        dataset_dicts, threshold
    )
    logger.info(
        "DATALOADER.REPEAT_THRESHOLD %g: an epoch shows %.0f images for %d, those of the rarest "
        "class %.2f times.",
        *(threshold, factors.sum(), len(dataset_dicts), factors.max()),
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
        names = cfg.DATASETS[split] = resolve_datasets(cfg.DATASETS[split])
        if not names:
            raise UserError(
                f"DATASETS.{split} is empty; expected a data set or path/to.json:path/to/images.",
                code="config_invalid",
            )
        for number, name in enumerate(names):
            DatasetCatalog.get(name)
            # A set of blank images may follow one with particles.
            blanks = number > 0 and not cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
            # A set registered by other code has no JSON; that code is responsible for it.
            if comm.is_main_process() and MetadataCatalog.get(name).get("json_file"):
                _check_set(cfg, name, training=split == "TRAIN" and not blanks)
    if "TRAIN" in splits:
        _check_weights(cfg)
        fiber_classes(cfg, cfg.DATASETS.TRAIN[0])
        _check_same_classes([name for split in splits for name in cfg.DATASETS[split]])
    cfg.freeze()
    comm.synchronize()
    return cfg


def _check_set(cfg: CfgNode, name: str, training: bool) -> None:
    """Check the JSON of a data set and its number of classes."""
    metadata, limit = MetadataCatalog.get(name), cfg.INPUT.MAX_PIXELS
    json_file, image_root = metadata.json_file, metadata.image_root
    names = check_instances(json_file, image_root, training=training, max_pixels=limit).classes
    key, node = class_node(cfg)
    if len(names) != node.NUM_CLASSES:
        raise UserError(
            f"{json_file} has {len(names)} classes ({', '.join(names)}) but {key}.NUM_CLASSES is "
            f"{node.NUM_CLASSES}; set {key}.NUM_CLASSES {len(names)} or correct the categories of "
            "the JSON.",
            code="classes_mismatch",
        )


def _check_same_classes(names: list[str]) -> None:
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
    are_numbers = all(type(w) in (int, float) and 0 < w < float("inf") for w in weights)
    if weights and not (are_numbers and len(weights) == len(names)):
        raise UserError(
            f"DATASETS.TRAIN_WEIGHTS is {weights}; expected a number above 0 for each of the "
            f"{len(names)} data sets in DATASETS.TRAIN (remove a data set that is not used).",
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


def _init_worker(_worker_id: int) -> None:
    # Only the main process reacts: a worker that dies first would prevent the last checkpoint.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    end_with_parent()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)  # 1 would wait for ever for the threads that a fork does not copy


def effective_workers(configured: int) -> int:
    """Return ``DATALOADER.NUM_WORKERS``, limited to this process's processors."""
    limit = max(1, available_processors() // max(1, comm.get_local_size()))
    if configured > limit:
        logger.info("DATALOADER.NUM_WORKERS %d limited to %d processors.", configured, limit)
    return min(configured, limit)


def _mapped(
    dataset: _Mapped, batches: Iterable[list[tuple[int, int]]], workers: int
) -> Iterator[list[dict[str, Any]]]:
    loader = DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=trivial_batch_collator,
        worker_init_fn=_init_worker,
    )
    for batch in loader:
        for item in batch:
            if isinstance(item, UserError):
                raise item
        yield batch


class TrainLoader:
    """Infinite training batches that can start at any iteration.

    Iterating yields lists of mapped dicts. Batch k depends only on the seed, the rank and k.
    """

    def __init__(self, cfg: CfgNode, mapper: Mapper | None = None):
        """
        Args:
            cfg: a config whose data sets are registered (:func:`check_datasets`).
            mapper: maps a data set dict to the input of the model; the project's own by default.

        Raises:
            UserError: ``config_invalid`` or ``dataset_empty``.
        """
        world_size = comm.get_world_size()
        images, expected = cfg.SOLVER.IMS_PER_BATCH, f"a multiple of the {world_size} processes"
        fits = images > 0 and images % world_size == 0
        check_option(fits, "SOLVER.IMS_PER_BATCH", images, expected, "config_invalid")
        # Of order and augmentation; the same on every rank.
        self.seed = cfg.SEED if cfg.SEED >= 0 else int(comm.shared_random_seed())
        check_augmentation(cfg)
        sets = _training_sets(cfg)
        self.dataset_dicts = [record for part in sets for record in part]
        self.batch_size = images // world_size
        self._mapper = mapper or MicroplasticsDatasetMapper(cfg, is_train=True)
        grouped = cfg.DATALOADER.ASPECT_RATIO_GROUPING
        self._groups = [int(grouped and d["width"] > d["height"]) for d in self.dataset_dicts]
        self._workers = effective_workers(cfg.DATALOADER.NUM_WORKERS)
        # How often an epoch shows each image, float32 (N,); None if each once.
        self._factors = _factors(cfg, sets)
        if getattr(self._mapper, "mixes", False):
            # Drawn like the images: a large set must not crowd out a small one.
            self._mapper.partners = self.dataset_dicts
            if self._factors is not None:
                self._mapper.partner_weights = self._factors.double().numpy()

    @property
    def images_per_epoch(self) -> float:
        """Number of images in one pass of the sampler, over all ranks."""
        factors = self._factors
        return float(len(self.dataset_dicts) if factors is None else factors.double().sum())

    @property
    def image_side(self) -> int:
        """Median of the shorter sides of the training images or windows, in px.

        Prediction tiles large images by it, so that particles have their size of training.
        """
        return int(np.median([min(d["width"], d["height"]) for d in self.dataset_dicts]))

    def iterate(self, start_iter: int = 0) -> Iterator[list[dict[str, Any]]]:
        """Return the batches from iteration ``start_iter`` on.

        Raises:
            UserError: an image of the batch cannot be read.
        """
        if self._factors is None:
            sampler = TrainingSampler(len(self.dataset_dicts), seed=self.seed)
        else:
            sampler = RepeatFactorTrainingSampler(self._factors, seed=self.seed)
        batches = batch_stream(sampler, self._groups, self.batch_size)
        dataset = _Mapped(self.dataset_dicts, self._mapper, self.seed, comm.get_rank())
        return _mapped(dataset, itertools.islice(batches, start_iter, None), self._workers)

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        return self.iterate()


def _factors(cfg: CfgNode, sets: list[list[dict[str, Any]]]) -> torch.Tensor | None:
    name, factors = cfg.DATALOADER.SAMPLER_TRAIN, None
    known = ("TrainingSampler", "RepeatFactorTrainingSampler")
    key, expected = "DATALOADER.SAMPLER_TRAIN", " or ".join(known)
    check_option(name in known, key, name, expected, "config_invalid")
    if cfg.DATASETS.TRAIN_WEIGHTS:
        sizes = [len(part) for part in sets]
        factors = set_factors(sizes, cfg.DATASETS.TRAIN_WEIGHTS, cfg.DATASETS.TRAIN)
    if name == "RepeatFactorTrainingSampler":
        dicts = [record for part in sets for record in part]
        repeats = repeat_factors(dicts, cfg.DATALOADER.REPEAT_THRESHOLD)
        factors = repeats if factors is None else factors * repeats
    return factors


def training_dicts(cfg: CfgNode) -> list[dict[str, Any]]:
    """Return the images or windows of training, after the filter of empty ones.

    Raises:
        UserError: ``dataset_empty``.
    """
    return [record for part in _training_sets(cfg) for record in part]


def _training_sets(cfg: CfgNode) -> list[list[dict[str, Any]]]:
    """Return the images or windows of each training set; without weights of all sets together."""
    names, node = list(cfg.DATASETS.TRAIN), cfg.INPUT.TILE
    sets = []
    # Detectron2's filter merges the sets: with weights each is loaded separately.
    for group in [[name] for name in names] if cfg.DATASETS.TRAIN_WEIGHTS else [names]:
        filter_empty = cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
        try:
            dicts = get_detection_dataset_dicts(group, filter_empty=filter_empty)
        except AssertionError as error:
            raise UserError(
                f"{', '.join(group)} has no annotated image to train on; annotate some, or set "
                "DATALOADER.FILTER_EMPTY_ANNOTATIONS False to include blank images.",
                code="dataset_empty",
            ) from error
        if node.SIZE > 0:
            limits = cfg.INPUT.MIN_VISIBLE_SHARE, cfg.INPUT.MIN_MASK_PIXELS
            dicts = tile_dicts(dicts, node.SIZE, node.OVERLAP, *limits, node.EMPTY_SHARE)
        if not dicts:
            raise UserError(
                f"{', '.join(group)} has no window to train on: none has a particle, and "
                f"INPUT.TILE.EMPTY_SHARE is {node.EMPTY_SHARE}; raise it, or remove the data set.",
                code="dataset_empty",
            )
        sets.append(dicts)
    return sets


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
        batches = [[(index, index)] for index in range(len(self))]
        dataset = _Mapped(self._dicts, self._mapper, 0)
        return _mapped(dataset, batches, min(self._workers, len(self)))
