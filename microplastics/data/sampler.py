"""Which images make up batch k: a pure function of the seed, the rank and k."""

import itertools
from collections.abc import Iterator, Sequence

from torch.utils.data import Sampler


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
