"""Bringing what every rank evaluated together."""

import itertools
from typing import Any

from detectron2.utils import comm


def gather_by_image(
    records: list[dict[str, Any]], distributed: bool
) -> list[dict[str, Any]] | None:
    """Collect the records of all ranks on rank 0, in an order that no rank count changes.

    Args:
        records: this rank's, each with the key ``image_id``.
        distributed: whether other ranks have some too. All ranks must then call this together.

    Returns:
        On rank 0 the records sorted by image id, one for each image (a sampler that pads its
        last batch hands an image to two ranks); ``None`` on the other ranks.
    """
    if distributed:
        comm.synchronize()
        records = list(itertools.chain(*comm.gather(records, dst=0)))
        if not comm.is_main_process():
            return None
    unique: dict[Any, dict[str, Any]] = {}
    for record in records:
        unique.setdefault(record["image_id"], record)
    return [unique[image_id] for image_id in sorted(unique)]
