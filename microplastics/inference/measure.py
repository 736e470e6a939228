"""``tools/measure.py``: from given masks to the same tables as ``tools/predict.py`` makes."""

import argparse
import contextlib
import dataclasses
import logging
import time
from collections.abc import Iterator

from detectron2.utils.logger import setup_logger
from tqdm import tqdm

from microplastics.engine.setup import check_output_dir
from microplastics.engine.weights import sha256_of
from microplastics.errors import UserError
from microplastics.inference.given import GivenImage, read_given
from microplastics.inference.merge import merge_into
from microplastics.inference.mosaic import particle_pixels
from microplastics.inference.opened import Opened, Opener
from microplastics.inference.options import run_options
from microplastics.inference.run import Run
from microplastics.measurement.region_files import CIRCLE

logger = logging.getLogger(__name__)


def measure_run(args: argparse.Namespace) -> int:
    """Do what the command line of ``tools/measure.py`` says.

    Args:
        args: of :func:`microplastics.inference.arguments.parse_measure`.

    Returns:
        0, or 3 where images failed.

    Raises:
        UserError: an argument is wrong, the masks cannot be read, or no image was finished.
    """
    options = run_options(args)
    if args.merge_runs:
        return merge_into(args.merge_runs, options)
    if args.images is None and options.scale_bar_um is not None:
        raise UserError("--scale-bar-um needs the photographs; give their folder by --images.")
    if args.images is None and options.region == CIRCLE:
        raise UserError("--region circle needs the photographs; give their folder by --images.")
    check_output_dir(options.output)
    setup_logger(options.output, name="microplastics")
    given = read_given(args.masks, args.images, args.dataset, args.class_name, args.min_score)
    masks = {
        path: sha256_of(path) for path in dict.fromkeys(each.masks_file for each in given.images)
    }
    about = {"masks": masks, "min_score": args.min_score}
    # Label images may come and go while the run is finished piece by piece.
    whole = [] if given.images[0].image.masks_path else list(masks.values())
    settings = {"masks_sha256": whole, "min_score": args.min_score}
    run = Run([each.image for each in given.images], options, given.class_names, about, settings)
    left = {image.name: image for image in run.begin()}
    opener = Opener(options, run.region_source)
    todo = [
        dataclasses.replace(each, image=left[each.image.name])
        for each in given.images
        if each.image.name in left
    ]
    for each in tqdm(todo, desc="Images", unit="image", disable=None):
        with run.attempt(each.image):
            _measure_one(each, run, opener)
    return run.end()


def _measure_one(given: GivenImage, run: Run, opener: Opener) -> None:
    start = time.perf_counter()
    particles, left_out = given.load()
    with _opened(given, opener, particles.image_size) as opened:
        if opened.regions is not None:
            size = (opened.regions.height, opened.regions.width)
            if size != tuple(particles.image_size):
                raise UserError(
                    f"{opened.image.path} is {size[1]} x {size[0]} px, but its masks are of "
                    f"{particles.image_size[1]} x {particles.image_size[0]} px; give the "
                    "photograph that was annotated."
                )
            pixels = particle_pixels(opened.regions, particles.masks, particles.offsets)
            particles = dataclasses.replace(particles, pixels=pixels)
        run.finish(opened, particles, {"left_out_of_masks": left_out}, start)


@contextlib.contextmanager
def _opened(given: GivenImage, opener: Opener, size: tuple[int, int]) -> Iterator[Opened]:
    if given.image.path:
        with opener.open(given.image) as opened:
            # Masks that are given are particles, wherever they lie.
            yield dataclasses.replace(opened, boxes=[])
        return
    calibration, boxes, notes = opener.scale(given.image.name)
    region = opener.region(given.image.name, tuple(size))
    yield Opened(given.image, None, calibration, boxes, notes, region)
