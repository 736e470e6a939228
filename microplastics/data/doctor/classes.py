"""Checks of the classes of a data set."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from detectron2.config import CfgNode

from microplastics.data.coco import Place, key_of, same_but_case, show
from microplastics.data.doctor.findings import Collector, Example, example_at
from microplastics.modeling.interface import num_classes

if TYPE_CHECKING:
    from microplastics.data.doctor.checks import Dataset

_RARE = 10  # times rarer than the most frequent class
# A class may be a property of the image if chance would mix classes on at least so many images, and
# at most this fraction of them are mixed.
_MIXED, _MIXED_FRACTION = 5, 0.05
# What leaves no annotation to train on; crowd and image_blank only if there is nothing else.
_UNUSABLE = (
    "no_image",
    "image_field",
    "image_duplicate",
    "not_an_object",
    "annotation_field",
    "segmentation_empty",
    "segmentation_type",
    "polygon_flat",
    "polygon_points",
    "polygon_odd",
    "polygon_numbers",
    "polygon_outside",
    "outline_long",
    "zero_area",
    "rle_size",
    "rle_counts",
    "rle_empty",
)


def check_categories(
    datasets: "Sequence[Dataset]", cfg: CfgNode | None, collector: Collector
) -> None:
    """Compare the classes of all files with the first file and with the config."""
    first = datasets[0]
    ids, names = list(first.class_names), list(first.class_names.values())
    for dataset in datasets:
        json_file = dataset.summary.json_file
        other_ids, other_names = list(dataset.class_names), list(dataset.class_names.values())
        code, pair = "", (other_names, names)
        if sorted(other_names) != sorted(names):
            code = "category_names"
        elif other_names != names:
            code = "category_order"
        elif other_ids != ids:
            code, pair = "category_ids", (other_ids, ids)
        if code:
            text = f"{json_file}: {show(pair[0])}, not {show(pair[1])} as in "
            collector.add(code, Example(text + first.summary.json_file, json_file))
        if cfg is not None and len(other_names) != num_classes(cfg):
            text = f"{json_file} has {len(other_names)} ({show(other_names)}), the config "
            collector.add("num_classes", Example(f"{text}{num_classes(cfg)}", json_file))


def check_case(datasets: "Sequence[Dataset]", collector: Collector) -> None:
    """Find classes, in one file or in several, whose names differ in case or spaces only."""
    counts: Counter[str] = Counter()
    for dataset in datasets:
        counts.update(dataset.summary.classes)
    for names in same_but_case(counts):
        text = " and ".join(f"{show(name)} ({counts[name]})" for name in names)
        collector.add("category_case", Example(text))


def check_balance(datasets: "Sequence[Dataset]", collector: Collector) -> None:
    """Find rare classes, or none to learn from, over all files together."""
    counts: Counter[str] = Counter()
    for dataset in datasets:
        counts.update(dataset.summary.classes)
    for name, count in counts.items():
        if 0 < count * _RARE < max(counts.values()):
            text = f"{show(name)}: {count} of {counts.total()}"
            collector.add("class_imbalance", Example(text))
    every = (m for dataset in datasets for m in dataset.examined.measured)
    if all(m.entry.get("iscrowd") == 1 for m in every):
        cause = collector.most_frequent(_UNUSABLE) or collector.most_frequent(
            ("crowd", "image_blank")
        )
        collector.add("nothing_to_train", Example(datasets[0].summary.json_file), cause)


def check_mixing(datasets: "Sequence[Dataset]", collector: Collector) -> None:
    """Find out whether a class is a property of the image: hardly any image has two.

    Compared with images whose particles had classes drawn at their frequencies in all files.
    """
    images: dict[tuple[int, int], Counter[str]] = defaultdict(Counter)
    for number, dataset in enumerate(datasets):
        for m in dataset.examined.measured:
            name = dataset.class_names.get(key_of(m.entry.get("category_id")))
            if name is not None and m.entry.get("iscrowd") != 1:
                images[number, m.image["id"]][name] += 1
    totals = sum(images.values(), Counter())
    several = {key: counts for key, counts in images.items() if counts.total() > 1}
    expected = sum(
        1 - sum((n / totals.total()) ** counts.total() for n in totals.values())
        for counts in several.values()
    )
    mixed = sum(len(counts) > 1 for counts in several.values())
    if expected < _MIXED or mixed > _MIXED_FRACTION * expected:
        return
    for (number, image_id), counts in several.items():
        if len(counts) == 1:
            dataset = datasets[number]
            place = Place("image", 0, dataset.examined.images[image_id])
            [(name, count)] = counts.items()
            collector.add(
                "class_of_image", example_at(place, f"{count} x {show(name)}", dataset.summary)
            )
