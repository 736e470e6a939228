"""Which images make up batch k: a pure function of the seed, the rank and k."""

import itertools
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from detectron2.data.samplers import RepeatFactorTrainingSampler
from tabulate import tabulate
from torch.utils.data import Sampler

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
