"""What readers of foreign formats give and writers take: images with their instances, streamed."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Instance:
    """One annotated particle.

    Attributes:
        category: class name.
        segmentation: COCO polygons ``[[x0, y0, x1, y1, …], …]`` in px, or compressed RLE
            ``{"size": [height, width], "counts": str}`` of the whole image.
        where: its place in the source, for messages, such as ``"a.json, shape 3"``.
        iscrowd: 1 for a region of particles that were not told apart.
        extra: further fields that go into the COCO annotation under their own names.
    """

    category: str
    segmentation: list[list[float]] | dict[str, Any]
    where: str
    iscrowd: int = 0
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass
class ImageRecord:
    """One image with its instances; none is a blank.

    Attributes:
        file_name: relative to :attr:`Source.image_root`, with ``/``.
        width: in px, of the image as ``data.images.read_image`` gives it.
        height: in px.
        instances: what lies on it.
        extra: further fields that go into the COCO image under their own names.
    """

    file_name: str
    width: int
    height: int
    instances: list[Instance] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass
class Source:
    """One split of a data set in a foreign format.

    Attributes:
        image_root: folder of the images.
        classes: every class name that occurs, in the order that the format gives, or else sorted.
        records: starts the stream anew at each call; images in a fixed order.
    """

    image_root: Path
    classes: list[str]
    records: Callable[[], Iterator[ImageRecord]]
    num_images: int | None = None


@dataclass(frozen=True)
class ReadOptions:
    """What a person may choose about reading any format.

    Attributes:
        skip_broken: leave out images and annotation files that are missing or broken, with a
            note each, where reading would stop with an error.
        line_width: width in px that turns lines (LabelMe linestrip, VIA polyline) into areas;
            None leaves them out, with a note each.
        max_pixels: refuse larger images; ``data.images.MAX_PIXELS`` if None.
        images: folder of the images where it is not found beside the annotations.
        crowd_as_instances: take COCO's crowd regions as one particle each.
        classes: class names of blanks, by category id from 1; those of the project if None.
    """

    skip_broken: bool = False
    line_width: float | None = None
    max_pixels: int | None = None
    images: Path | None = None
    crowd_as_instances: bool = False
    classes: tuple[str, ...] | None = None
