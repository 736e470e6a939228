"""Every code of the data set doctor, in words. One dictionary, which docs/doctor.md is held to.

Those of what a model can see are in ``model_fit``.
"""

from typing import NamedTuple

from microplastics.data.coco_findings import ERRORS
from microplastics.data.doctor.diagnosis import INFO, PROBLEM, WARNING


class Kind(NamedTuple):
    """What one code means; the fields are those of ``diagnosis.Finding``."""

    severity: str
    what: str
    consequence: str
    mend: str
    fixable: bool = False


_STOPS = "Training stops before it starts."
_CLIPPED = "Our training cuts them at the border; others learn boxes that leave the image."
_UNION = "Training fills it: the mask is the union of all polygons of the annotation."
_LEAK = "The score on the second split is flattered: the model has seen these particles."


def _stop(code: str, what: str, consequence: str = _STOPS, fixable: bool = False) -> Kind:
    """A kind of error for which training stops; its mend is that of the check before training."""
    return Kind(PROBLEM, what, consequence, _sentence(ERRORS[code][1]), fixable)


def _sentence(words: str) -> str:
    return f"{words[0].upper()}{words[1:]}."


_JSON = {
    "not_json": Kind(
        PROBLEM,
        "files that are not usable JSON",
        _STOPS,
        "Export or copy the file again; nothing else of it could be checked.",
    ),
    "structure": Kind(
        PROBLEM,
        "files without the lists images, annotations and categories of COCO",
        _STOPS,
        "Export as COCO instance segmentation; nothing else of the file could be checked.",
    ),
    "not_an_object": _stop("not_an_object", "entries that are not JSON objects"),
    "image_field": _stop("image_field", "images that lack a field or have one of the wrong type"),
    "image_duplicate": _stop("image_duplicate", "images with an id that another image has"),
    "image_twice": Kind(
        WARNING,
        "images that name a file that another names",
        "Training sees the photograph twice, each time with a part of its particles: the others "
        "are taught to be background.",
        "Join the two entries and their annotations into one.",
    ),
    "file_name": _stop("file_name", "images whose file_name leaves the image folder"),
    "category_field": _stop(
        "category_field", "categories that lack a field or have one of the wrong type"
    ),
    "category_duplicate": _stop("category_duplicate", "categories with an id that another has"),
    "category_same_name": _stop("category_same_name", "categories with the name of another"),
    "category_placeholder": Kind(
        WARNING,
        "unused placeholder categories",
        "Our training leaves them out; Detectron2's own loader adds a class that never occurs.",
        "Delete them, or let --fix do it.",
        True,
    ),
    "category_unused": Kind(
        INFO,
        "categories without annotations",
        "The model has an output for them that it never learns to use.",
        "Annotate some, or take the category out of the file.",
    ),
    "annotation_field": _stop(
        "annotation_field", "annotations that lack a field or have one of the wrong type"
    ),
    "box_field": _stop("box_field", "annotations without a usable bbox", fixable=True),
    "area_field": _stop("area_field", "annotations whose area is not a number", fixable=True),
    "annotation_zero": _stop(
        "annotation_zero",
        "annotations with id 0",
        "Training stops before it starts; pycocotools would never count its match as found.",
        True,
    ),
    "annotation_duplicate": _stop(
        "annotation_duplicate",
        "annotations with an id that another has",
        "Training stops before it starts; evaluation would mistake one for the other.",
        True,
    ),
    "annotation_twice": Kind(
        WARNING,
        "annotations that repeat another's image, category and outline",
        "The particle is counted twice: recall cannot reach 1.",
        "Delete the repeats, or let --fix do it.",
        True,
    ),
    "no_image": _stop("no_image", "annotations of an image that is not in the file", fixable=True),
    "no_category": _stop("no_category", "annotations of a category that is not in the file"),
    "ignore": _stop("ignore", "annotations with ignore set"),
    "area_missing": Kind(
        WARNING,
        "annotations without area",
        "Our training computes it from the mask; Detectron2's evaluator fails.",
        "Fill it in, or let --fix do it.",
        True,
    ),
    "area_of_box": Kind(
        WARNING,
        "annotations whose area is that of the box",
        "Ours takes the mask's; elsewhere AP for small, medium and large comes out wrong.",
        "Let --fix compute it from the mask.",
        True,
    ),
    "area_differs": Kind(
        WARNING,
        "annotations whose area is neither the mask's nor the box's",
        "Ours takes the mask's; elsewhere AP for small, medium and large comes out wrong.",
        "Let --fix compute it from the mask.",
        True,
    ),
    "bbox_differs": Kind(
        WARNING,
        "boxes that differ from their mask by over 2 px",
        "Ours takes the mask's; elsewhere the box head learns these wrong boxes.",
        "Let --fix compute them from the mask.",
        True,
    ),
    "bbox_xyxy": Kind(
        WARNING,
        "boxes written as x0, y0, x1, y1 instead of x, y, width, height",
        "Ours takes the mask's; elsewhere the box head learns boxes that are far too large.",
        "Let --fix compute them from the mask.",
        True,
    ),
    "iscrowd_missing": Kind(
        INFO,
        "annotations without iscrowd",
        "Taken as 0 by ours; Detectron2's evaluator fails.",
        "Fill it in, or let --fix do it.",
        True,
    ),
    "crowd": Kind(
        INFO,
        "annotations with iscrowd 1",
        "Training skips them, evaluation neither rewards nor punishes what is found there.",
        "Nothing, where they are groups that cannot be told apart.",
    ),
    "keypoints": Kind(
        INFO, "annotations with keypoints", "They are not used.", "Nothing needs to be done."
    ),
}

_MASKS = {
    "segmentation_empty": _stop("segmentation_empty", "annotations with an empty segmentation"),
    "segmentation_type": _stop(
        "segmentation_type", "segmentations that are neither polygons nor RLE"
    ),
    "polygon_flat": _stop("polygon_flat", "segmentations of bare numbers"),
    "polygon_points": _stop("polygon_points", "polygons of fewer than 3 points", fixable=True),
    "polygon_odd": _stop("polygon_odd", "polygons with an odd number of coordinates"),
    "polygon_numbers": _stop(
        "polygon_numbers", "polygons with coordinates that are not finite numbers"
    ),
    "polygon_outside": _stop(
        "polygon_outside", "annotations wholly outside their image", fixable=True
    ),
    "polygon_clipped": Kind(
        WARNING,
        "annotations that reach out of their image",
        _CLIPPED,
        "Check that the image has not been cropped since, then let --fix cut them.",
        True,
    ),
    "outline_long": _stop("outline_long", "outlines of impossible length"),
    "zero_area": _stop("zero_area", "segmentations of zero area", fixable=True),
    "subpixel": Kind(
        WARNING,
        "annotations whose mask has no pixel",
        "They can never be found, and lower the recall.",
        "Delete them, or outline the particle at a higher magnification.",
    ),
    "polygon_crossing": Kind(
        WARNING,
        "polygons that cross themselves or enclose nothing",
        "Where an outline runs over itself, inside and outside change places: parts of the "
        "particle are taught to be background.",
        "Outline them again where that matters; --fix makes them valid and keeps their pixels.",
        True,
    ),
    "polygon_touching": Kind(
        INFO,
        "polygons that touch themselves, as at a corner or along a cut that leads to a hole",
        "None: the mask is right. Geometry programs may call them invalid.",
        "Nothing needs to be done.",
    ),
    "points_repeated": Kind(
        INFO,
        "polygons in which a point follows itself",
        "Training is not changed by it.",
        "Let --fix take the repeats out.",
        True,
    ),
    "polygon_repeated": Kind(
        WARNING,
        "annotations in which one polygon occurs twice",
        "Training draws it once; tools that add up areas count it twice.",
        "Delete the repeat, or let --fix do it.",
        True,
    ),
    "polygon_hole": Kind(
        WARNING,
        "annotations with a polygon inside another of its polygons, as a hole would be written",
        _UNION,
        "COCO polygons have no holes: export the mask as RLE, or delete the inner polygon.",
    ),
    "overlap": Kind(
        WARNING,
        "pairs of particles of one image that overlap with an IoU above 0.9",
        "One particle is taught as two: the model learns to report it twice.",
        "Delete one of each pair.",
    ),
    "unchecked": Kind(
        INFO,
        "images or annotations with too many overlapping parts to compare all of them",
        "Repeated particles and holes may remain unseen there.",
        "Look at them; so many outlines at one place are seldom meant.",
    ),
    "rle_size": _stop("rle_size", "RLE masks of another size than their image"),
    "rle_counts": _stop("rle_counts", "malformed RLE masks"),
    "rle_empty": _stop("rle_empty", "RLE masks without a single pixel"),
}

_IMAGES = {
    "image_missing": _stop("image_missing", "images that are not on the disk", fixable=True),
    "image_file": Kind(
        PROBLEM,
        "image files that cannot be read to the end",
        "Training stops when it meets them, maybe hours after its start.",
        "Copy the file again from where it came, or let --fix leave the image out.",
        True,
    ),
    "image_size": _stop("image_size", "images of another size than their file"),
    "image_unlisted": Kind(
        WARNING,
        "image files in the folder that no JSON names",
        "Training never sees them.",
        "Annotate them; a blank needs its entry in images, too.",
    ),
    "image_unlisted_cut": Kind(
        INFO,
        "image folders with too many files to look for those that no JSON names",
        "Photographs may lie there that training never sees.",
        "Give a folder that holds the data set alone.",
    ),
    "image_blank": Kind(
        INFO,
        "images without annotations",
        "Detectron2 leaves them out of training (DATALOADER.FILTER_EMPTY_ANNOTATIONS); evaluation "
        "uses them.",
        "Nothing, where they are blanks; otherwise annotate them.",
    ),
    "image_exif": Kind(
        INFO,
        "images that are turned by their EXIF rotation",
        "Training turns them upright, and the JSON agrees with that; other programs may not.",
        "Save them upright without the EXIF tag.",
    ),
    "image_header": Kind(
        INFO,
        "images with a damaged tag, whose rotation, bit depth or frames could not be looked up",
        "Training takes them as they are stored, upright.",
        "Save them again from the program that made them.",
    ),
    "image_deep": Kind(
        INFO,
        "images of more than 8 bits a channel",
        "They are stretched to 8 bits, each from its own darkest to its brightest pixels.",
        "Nothing; take the brightness of such images with care.",
    ),
    "image_depth_mixed": Kind(
        WARNING,
        "images of another bit depth than most",
        "Deep images are stretched and the others are not: two kinds of contrast are learnt.",
        "Export all images at one bit depth.",
    ),
    "image_channels_mixed": Kind(
        WARNING,
        "grey images among coloured ones, or the other way round (the rarer kind is counted)",
        "The model may tell particles by the kind of image instead of by their look.",
        "Photograph or convert all of them in one way.",
    ),
    "image_frames": Kind(
        WARNING,
        "image files with several frames or pages",
        "Only the first is read.",
        "Save the one that was annotated as a file of its own.",
    ),
    "image_same": Kind(
        WARNING,
        "images whose pixels are those of an earlier one of the same file",
        "They count double, and their annotations may contradict each other.",
        "Keep one of each.",
    ),
    "image_near": Kind(
        INFO,
        "images that are nearly the same as an earlier one of the same file",
        "They count double; harmless where they are copies that were augmented on purpose.",
        "Keep them in one split.",
    ),
}

_SPLITS = {
    "split_same": Kind(
        PROBLEM,
        "images that lie in two files, pixel by pixel the same",
        _LEAK,
        "Take them out of one of the two.",
    ),
    "split_near": Kind(
        WARNING,
        "images that are nearly the same as one of another file",
        _LEAK,
        "Look at the pairs, and take those that show one place of a filter into one split.",
    ),
    "split_original": Kind(
        WARNING,
        "images made by Roboflow from a photograph that another file has, too",
        _LEAK,
        "Split before augmenting, so that all copies of a photograph are in one split.",
    ),
    "split_group": Kind(
        PROBLEM,
        "samples or filters (--group-regex) that lie in two files",
        _LEAK,
        "Split by sample: tools/split_dataset.py --group-regex.",
    ),
    "group_unmatched": Kind(
        WARNING,
        "images whose name --group-regex does not match",
        "Whether their sample lies in two files has not been looked at.",
        "Correct the regular expression.",
    ),
    "category_names": Kind(
        PROBLEM,
        "files with other classes than the first",
        "Evaluation stops, or counts one class as another.",
        "Give all files the same categories.",
    ),
    "category_order": Kind(
        PROBLEM,
        "files whose classes have another order, by id, than in the first",
        "Class numbers follow the ids: one class is taken for another.",
        "Give all files the same ids.",
    ),
    "category_ids": Kind(
        WARNING,
        "files with other category ids than the first",
        "Training is right, as only their order counts; result files carry other ids.",
        "Give all files the same ids.",
    ),
    "num_classes": Kind(
        PROBLEM,
        "files whose number of classes is not MODEL.ROI_HEADS.NUM_CLASSES",
        _STOPS,
        "Set MODEL.ROI_HEADS.NUM_CLASSES, or correct the categories.",
    ),
    "class_imbalance": Kind(
        INFO,
        "classes with less than a tenth of the annotations of the most frequent one",
        "They are seldom seen, and are found worst.",
        "Annotate more of them, or set DATALOADER.SAMPLER_TRAIN RepeatFactorTrainingSampler.",
    ),
    "nothing_to_train": Kind(
        PROBLEM,
        "data sets without a single annotation to train on",
        "Training stops before it starts.",
        "Annotate some of the images.",
    ),
}

CODES = {**_JSON, **_MASKS, **_IMAGES, **_SPLITS}
