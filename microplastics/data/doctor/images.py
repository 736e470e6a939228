"""The image files: there, whole, of the right size, and all of one kind."""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image
from tqdm import tqdm

from microplastics.data.coco_check import file_problem
from microplastics.data.coco_entries import is_safe_name
from microplastics.data.doctor.collector import Collector, at_image
from microplastics.data.doctor.dataset import Dataset
from microplastics.data.doctor.diagnosis import Example
from microplastics.data.images import read_image
from microplastics.data.pool import available_processors, map_in_processes
from microplastics.data.similarity import Fingerprint, fingerprint
from microplastics.errors import UserError

# Starting a process costs a few seconds: fewer pixels than this are decoded without.
_PIXELS_WORTH_A_PROCESS = 3 * 10**8
_EXTENSIONS = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".gif", ".ppm", ".webp", ".jp2")
_FILES = 200_000  # of a folder that are looked at
_EXIF_ORIENTATION, _TIFF_BITS = 274, 258


@dataclass(frozen=True)
class ImageFacts:
    """What a file turned out to be.

    Attributes:
        problem: code and detail of what is wrong with it, or None.
        bits: a channel, or 0 where it is not known.
        grey: all channels are the same.
        turned: its EXIF orientation is another than upright.
        frames: how many it holds.
        fingerprint: for finding it again, or None where it cannot be read.
        unread: why bits, turned or frames could not be looked up, or "".
    """

    problem: tuple[str, str] | None = None
    bits: int = 0
    grey: bool = False
    turned: bool = False
    frames: int = 1
    fingerprint: Fingerprint | None = None
    unread: str = ""


@dataclass(frozen=True)
class ImageOf:
    """An image entry of a data set with what its file turned out to be."""

    dataset: int
    image: dict[str, Any]
    path: str
    facts: ImageFacts


def inspect_images(
    datasets: Sequence[Dataset],
    collector: Collector,
    workers: int | None,
    max_pixels: int | None,
    progress: bool,
) -> list[ImageOf]:
    """Decode every image once and find what is wrong with it.

    Args:
        datasets: whose images; the unusable ones are listed in their summaries.
        collector: takes the findings.
        workers: processes; None takes the processors there are, or none for a small job.
        max_pixels: images of more pixels are refused; ``images.MAX_PIXELS`` if None.
        progress: whether to show a bar on stderr, where that is a terminal.
    """
    entries = [
        (number, image, os.path.join(dataset.image_root, image["file_name"]))
        for number, dataset in enumerate(datasets)
        for image in sorted(dataset.examined.images.values(), key=lambda image: image["id"])
        if is_safe_name(image["file_name"])
    ]
    tasks = [(image, datasets[n].image_root, max_pixels) for n, image, _ in entries]
    # One file may be named by several splits, which may claim different sizes of it.
    keys = [(path, image.get("width"), image.get("height")) for _, image, path in entries]
    distinct = dict(zip(map(repr, keys), tasks, strict=True))
    results = map_in_processes(
        inspect_file, list(distinct.values()), _processes(workers, distinct.values())
    )
    bar = tqdm(results, "Decoding", len(distinct), unit="image", disable=None if progress else True)
    facts = dict(zip(distinct, bar, strict=True))
    images = [
        ImageOf(number, image, path, facts[repr(key)])
        for (number, image, path), key in zip(entries, keys, strict=True)
    ]
    for of in images:
        _report(datasets[of.dataset], of, collector)
    _check_kinds(datasets, images, collector)
    return images


def _processes(workers: int | None, tasks: Any) -> int:
    if workers is None:
        pixels = sum(
            image["width"] * image["height"] for image, _, _ in tasks if "invalid" not in image
        )
        workers = available_processors() if pixels >= _PIXELS_WORTH_A_PROCESS else 1
    return max(1, min(workers, len(tasks)))


def inspect_file(task: tuple[dict[str, Any], str, int | None]) -> ImageFacts:
    """Decode one image.

    Args:
        task: the image as ``coco_check`` gives it, its image root, the bound on its pixels.
    """
    image, root, max_pixels = task
    path = os.path.join(root, image["file_name"])
    problem = file_problem(image, root, max_pixels)
    if problem and problem[0] != "image_size":
        return ImageFacts(problem)
    try:
        pixels = read_image(path, max_pixels=max_pixels)
    except UserError as error:
        return ImageFacts(("image_file", str(error).rstrip(".")))
    grey = bool(
        (pixels[..., 0] == pixels[..., 1]).all() and (pixels[..., 1] == pixels[..., 2]).all()
    )
    return ImageFacts(problem, grey=grey, fingerprint=fingerprint(pixels), **_header(path))


def _header(path: str) -> dict[str, Any]:
    """Bits, orientation and frames of a file that has been decoded already."""
    # Decoded without fault, but a damaged tag can still raise nearly anything.
    facts: dict[str, Any] = {}
    try:
        with open(path, "rb") as file, Image.open(file) as image:
            # The second picture in the JPEG of a phone is a preview.
            facts["frames"] = 1 if image.format == "MPO" else int(getattr(image, "n_frames", 1))
            facts["bits"] = _bits(image)
            facts["turned"] = int(image.getexif().get(_EXIF_ORIENTATION, 1)) in range(2, 9)
    except Exception as error:
        return facts | _tiff_header(path, error)
    return facts


def _bits(image: Image.Image) -> int:
    if image.format == "TIFF":
        return int(max(image.tag_v2.get(_TIFF_BITS, (1,))))
    if image.mode in ("I", "F"):
        return 32
    # Pillow cuts 16-bit colour down to 8 bits, and tells so in the raw mode alone.
    deep = image.mode.startswith("I;16") or any(";16" in str(tile[3]) for tile in image.tile)
    return 16 if deep else 8


def _tiff_header(path: str, error: Exception) -> dict[str, Any]:
    """The same for a TIFF that Pillow does not know; for others what Pillow stumbled over."""
    if not path.lower().endswith((".tif", ".tiff")):
        return {"unread": str(error) or type(error).__name__}
    import tifffile  # slow to import and seldom needed

    try:
        with tifffile.TiffFile(path) as tiff:
            return {"frames": len(tiff.pages), "bits": int(tiff.pages[0].bitspersample)}
    except Exception as error:
        return {"unread": str(error) or type(error).__name__}


def _report(dataset: Dataset, of: ImageOf, collector: Collector) -> None:
    facts = of.facts

    def add(code: str, detail: str = "") -> None:
        collector.add(
            code, lambda: at_image(of.image, detail, dataset.json_file, dataset.image_root)
        )

    if facts.problem:
        add(*facts.problem)
        if facts.problem[0] != "image_size":
            dataset.summary.unusable_images.append(of.image["file_name"])
    elif facts.turned:
        add("image_exif")
    if facts.unread:
        add("image_header", facts.unread)
    if facts.frames > 1:
        add("image_frames", f"{facts.frames} frames")
    if facts.bits > 8:
        add("image_deep", f"{facts.bits} bits")


def _check_kinds(datasets: Sequence[Dataset], images: list[ImageOf], collector: Collector) -> None:
    """Find images that are of another kind than most, over all data sets together."""
    _check_kind(
        "image_channels_mixed",
        [of for of in images if of.facts.fingerprint is not None],
        lambda of: "grey" if of.facts.grey else "coloured",
        datasets,
        collector,
    )
    _check_kind(
        "image_depth_mixed",
        [of for of in images if of.facts.bits],
        lambda of: f"{of.facts.bits if of.facts.bits > 8 else 8} bits",
        datasets,
        collector,
    )


def _check_kind(
    code: str,
    images: list[ImageOf],
    kind_of: Callable[[ImageOf], str],
    datasets: Sequence[Dataset],
    collector: Collector,
) -> None:
    counts = Counter(map(kind_of, images))
    if len(counts) < 2:
        return
    usual = counts.most_common(1)[0][0]
    for of in images:
        kind = kind_of(of)
        if kind != usual:
            dataset = datasets[of.dataset]
            collector.add(
                code,
                lambda o=of, k=kind, d=dataset: at_image(o.image, k, d.json_file, d.image_root),
            )


def check_unlisted(datasets: Sequence[Dataset], collector: Collector) -> None:
    """Find image files under the image roots that no JSON names."""
    named = {
        os.path.abspath(os.path.join(dataset.image_root, image["file_name"]))
        for dataset in datasets
        for image in dataset.examined.images.values()
        if is_safe_name(image["file_name"])
    }
    seen: set[str] = set()
    for root in dict.fromkeys(os.path.abspath(dataset.image_root) for dataset in datasets):
        for number, path in enumerate(_image_files(root)):
            if number >= _FILES:
                collector.add("image_unlisted_cut", lambda r=root: Example(r))
                break
            if path not in named and path not in seen:
                seen.add(path)
                collector.add("image_unlisted", lambda p=path: Example(_printable(p), image=p))


def _image_files(root: str) -> Iterator[str]:
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if name.lower().endswith(_EXTENSIONS) and not name.startswith("."):
                yield os.path.join(folder, name)


def _printable(path: str) -> str:
    return path.encode("utf-8", "backslashreplace").decode()
