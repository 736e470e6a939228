"""Formats that are known and not read, with the export to choose instead."""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from microplastics.data.formats import layout

_OUTLINES = "export outlines instead, as COCO instance segmentation"
_SAMPLED_FILES, _SAMPLED_LINES, _SAMPLED_BYTES = 20, 200, 1 << 16
_TOLERANCE = 2e-3  # of the image's sides, to which coordinates are rounded
_RECTANGLES = 0.9  # fraction of the outlines of YOLO-OBB: those at the border are cut


class _Known(NamedTuple):
    """A format: what it is and what to do, the endings of its files, and how they look."""

    words: str
    suffixes: tuple[str, ...]
    matches: Callable[[bytes], bool]


_KNOWN = (
    _Known(
        f"Pascal VOC's XML of boxes, which have no outlines; {_OUTLINES} or as Pascal VOC's "
        "segmentation masks",
        (".xml",),
        lambda text: b"<annotation" in text and b"<bndbox>" in text,
    ),
    _Known(
        f"CreateML, which has boxes and no outlines; {_OUTLINES}",
        (".json",),
        lambda text: text.startswith(b"[{") and b'"coordinates":{' in text and b'"image' in text,
    ),
    _Known(
        "VoTT, which has no export of outlines that others read; convert its JSON to COCO "
        "instance segmentation with another tool",
        (".json", ".vott"),
        lambda text: (b'"assets":{' in text and b'"tags":[' in text)
        or (b'"asset":{' in text and b'"regions":[' in text),
    ),
    _Known(
        "a table of OpenImages, whose outlines are files elsewhere; export it as COCO instance "
        "segmentation, which FiftyOne does",
        (".csv",),
        lambda text: text.startswith((b"ImageID,", b"MaskPath,ImageID,")),
    ),
    _Known(
        f"a table of boxes, which have no outlines; {_OUTLINES}",
        (".csv",),
        lambda text: b"xmin,ymin,xmax,ymax" in text.lower()[:300],
    ),
    _Known(
        "Datumaro's own format; export the data set as COCO instance segmentation (in CVAT: COCO "
        "1.0)",
        (".json",),
        lambda text: b'"dm_format_version"' in text
        or (b'"items":[' in text and b'"categories":{' in text),
    ),
)
_PANOPTIC = (
    "COCO's panoptic segmentation, whose outlines are colours of PNG files; choose the export of "
    "instances (instances_*.json)"
)
_ROTATED = f"boxes that are turned (YOLO-OBB or DOTA), which have no outlines; {_OUTLINES} or YOLO "
_ROTATED += "segmentation"


def recognise(path: Path, fitting: Sequence[str]) -> str | None:
    """Return what an input is and what to do instead, if it is of a known format that is not read.

    Args:
        path: file or folder.
        fitting: names of the formats that it fits: YOLO-OBB fits YOLO, panoptic COCO fits COCO.
    """
    if list(fitting) == ["yolo"] and _is_rotated(path):
        return f"{_ROTATED}, or take the boxes as they are with --from yolo"
    if list(fitting) in ([], ["coco"]) and _is_panoptic(path):
        return _PANOPTIC
    if fitting:
        return None
    for known in _KNOWN:
        if layout.sniff(path, known.matches, frozenset(known.suffixes)):
            return known.words
    return _ROTATED if _is_rotated(path) else None


def _is_panoptic(path: Path) -> bool:
    def matches(text: bytes) -> bool:
        return b'"segments_info":[' in text

    return layout.sniff(path, matches) and not layout.sniff(
        path, lambda text: b'"segmentation":' in text and not matches(text)
    )


def _is_rotated(path: Path) -> bool:
    """Return whether the label files have turned rectangles only, as YOLO-OBB or as DOTA."""
    rows = list(islice(_rows(path), _SAMPLED_LINES))
    if not rows or None in rows:
        return False
    # Of a parallelogram both diagonals have the same middle; the unit of the sides is no matter.
    boxes = [
        all(abs(row[i] + row[i + 4] - row[i + 2] - row[i + 6]) < 2 * _TOLERANCE for i in (0, 1))
        for row in rows
    ]
    turned = [min(abs(row[0] - row[2]), abs(row[1] - row[3])) > _TOLERANCE for row in rows]
    return sum(boxes) >= _RECTANGLES * len(rows) and any(turned)


def _rows(path: Path) -> Iterator[list[float] | None]:
    """Yield the corners in each line of the label files, or None for a line of another kind."""
    folder = path if path.is_dir() else path.parent
    names = (
        name
        for name in layout.list_files(folder, frozenset((".txt",)))
        if {"labels", "labeltxt", "obj_train_data"} & set(name.lower().split("/")[:-1])
    )
    for name in islice(names, _SAMPLED_FILES):
        if not (folder / name).is_file():  # opening a pipe would block
            continue
        with open(folder / name, "rb") as file:
            lines = file.readlines(_SAMPLED_BYTES)
        for line in lines:
            if line.strip() and b":" not in line:  # DOTA begins with imagesource: and gsd:
                yield _corners(line)


def _corners(line: bytes) -> list[float] | None:
    words = line.split()
    is_dota = len(words) == 10 and words[-1].isdigit()
    numbers = words[:8] if is_dota else words[1:]
    try:
        values = [float(word) for word in numbers]
    except ValueError:
        return None
    if len(values) != 8:
        return None
    scale = max(1.0, *map(abs, values)) if is_dota else 1.0
    return [value / scale for value in values]
