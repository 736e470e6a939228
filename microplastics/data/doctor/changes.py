"""The list of everything that ``--fix`` changed."""

from typing import Any

CHANGES = {
    "image_dropped": "images left out",
    "annotation_dropped": "annotations left out",
    "category_dropped": "placeholder categories left out",
    "polygon_dropped": "polygons or parts of them left out",
    "polygon_mended": "polygons made valid",
    "polygon_clipped": "polygons cut at the image's border",
    "points_removed": "polygons from which repeated points were taken out",
    "bbox": "boxes computed from the mask",
    "area": "areas computed from the mask",
    "iscrowd": "missing iscrowd set to 0",
    "id": "annotations given a new id",
}


class Changes:
    """Every change, in order."""

    def __init__(self) -> None:
        self.entries: list[dict[str, Any]] = []

    def add(self, kind: str, index: int, id_: Any, reason: str, **details: Any) -> None:
        """Note one change.

        Args:
            kind: one of ``CHANGES``.
            index: position in its list of the original JSON, from 0.
            id_: the original id, whatever it was.
            reason: why.
            details: what stood there, and what stands there now.
        """
        if kind not in CHANGES:
            raise KeyError(kind)
        self.entries.append(
            {"change": kind, "index": index, "id": id_, "reason": reason, **details}
        )

    def counts(self) -> dict[str, int]:
        """How often each kind occurs, in the order of ``CHANGES``."""
        counts = dict.fromkeys(CHANGES, 0)
        for entry in self.entries:
            counts[entry["change"]] += 1
        return {kind: count for kind, count in counts.items() if count}
