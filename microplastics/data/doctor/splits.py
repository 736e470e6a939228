"""What several files say together: duplicates and groups across them, their classes."""

import os
from collections import defaultdict
from collections.abc import Iterable, Sequence

from detectron2.config import CfgNode

from microplastics.data.coco_findings import show
from microplastics.data.doctor.collector import Collector, at_image
from microplastics.data.doctor.dataset import Dataset
from microplastics.data.doctor.diagnosis import Example
from microplastics.data.doctor.images import ImageOf
from microplastics.data.similarity import find_duplicates
from microplastics.data.splits.groups import compile_pattern, group_of, roboflow_original
from microplastics.errors import UserError

_RARE = 10  # times rarer than the most frequent class


def check_duplicates(
    datasets: Sequence[Dataset], images: Sequence[ImageOf], collector: Collector
) -> None:
    """Find images that occur twice, in one file or in two."""
    whole = [of for of in images if of.facts.fingerprint is not None]
    if len(whole) < 2:
        return
    duplicates = find_duplicates([of.facts.fingerprint for of in whole])
    exact_of = {index: group[0] for group in duplicates.exact for index in group}
    for group in duplicates.exact:
        _check_group(datasets, [whole[i] for i in group], ("image_same", "split_same"), collector)
    for group in duplicates.near:
        # Of images with the same pixels one stands for all: they have been reported.
        distinct = {exact_of.get(index, index): whole[index] for index in reversed(group)}
        members = [distinct[key] for key in sorted(distinct)]
        if len(members) > 1:
            _check_group(datasets, members, ("image_near", "split_near"), collector)


def _check_group(
    datasets: Sequence[Dataset],
    group: list[ImageOf],
    codes: tuple[str, str],
    collector: Collector,
) -> None:
    """Report each image of a group but the first: as of the same file, or of another."""
    firsts: dict[int, ImageOf] = {}
    for of in group:
        earlier = firsts.get(of.dataset)
        # Two entries that name one file are found without looking at pixels.
        if earlier is not None and os.path.normpath(earlier.path) != os.path.normpath(of.path):
            _add_pair(datasets, codes[0], of, earlier, collector)
        elif earlier is None:
            if firsts:
                _add_pair(datasets, codes[1], of, next(iter(firsts.values())), collector)
            firsts[of.dataset] = of


def _add_pair(
    datasets: Sequence[Dataset], code: str, of: ImageOf, other: ImageOf, collector: Collector
) -> None:
    dataset = datasets[of.dataset]

    def example() -> Example:
        where = "" if of.dataset == other.dataset else f" of {datasets[other.dataset].json_file}"
        detail = f"as {show(other.image['file_name'])}{where}"
        made = at_image(of.image, detail, dataset.json_file, dataset.image_root)
        made.other_image = other.path
        return made

    collector.add(code, example)


def check_groups(
    datasets: Sequence[Dataset],
    images: Sequence[ImageOf],
    pattern: str | None,
    collector: Collector,
) -> None:
    """Find samples that lie in two files: by the pattern, or by Roboflow's names.

    Args:
        datasets: the files.
        images: their images.
        pattern: regular expression of ``--group-regex``, or None.
        collector: takes the findings.
    """
    if pattern is not None:
        compiled = compile_pattern(pattern)
        grouped = []
        for of in images:
            try:
                grouped.append((of, group_of(of.image["file_name"], compiled)))
            except UserError:
                dataset = datasets[of.dataset]
                collector.add(
                    "group_unmatched",
                    lambda o=of, d=dataset: at_image(o.image, "", d.json_file, d.image_root),
                )
        _check_shared(datasets, grouped, "split_group", collector)
    originals = ((of, roboflow_original(of.image["file_name"])) for of in images)
    found = ((of, original) for of, original in originals if original is not None)
    _check_shared(datasets, found, "split_original", collector)


def _check_shared(
    datasets: Sequence[Dataset],
    grouped: Iterable[tuple[ImageOf, str]],
    code: str,
    collector: Collector,
) -> None:
    """Report each group that has images in two files, once for each further file."""
    groups: dict[str, dict[int, ImageOf]] = defaultdict(dict)
    for of, group in grouped:
        groups[group].setdefault(of.dataset, of)
    for group, members in groups.items():
        first, *others = members.values()
        for of in others:

            def example(of: ImageOf = of, first: ImageOf = first, group: str = group) -> Example:
                words = f"{show(group)}: {of.path} and {first.path}"
                return Example(
                    words, datasets[of.dataset].json_file, of.path, other_image=first.path
                )

            collector.add(code, example)


def check_categories(
    datasets: Sequence[Dataset], cfg: CfgNode | None, collector: Collector
) -> None:
    """Compare the classes of all files with those of the first, and with the config."""
    first = datasets[0]
    ids, names = list(first.class_names), list(first.class_names.values())
    for dataset in datasets[1:]:
        other_ids, other_names = list(dataset.class_names), list(dataset.class_names.values())
        if sorted(other_names) != sorted(names):
            code, detail = "category_names", f"{show(other_names)}, not {show(names)}"
        elif other_names != names:
            code, detail = "category_order", f"{show(other_names)}, not {show(names)}"
        elif other_ids != ids:
            code, detail = "category_ids", f"{show(other_ids)}, not {show(ids)}"
        else:
            continue
        text = f"{dataset.json_file}: {detail} as in {first.json_file}"
        collector.add(code, lambda t=text, d=dataset: Example(t, d.json_file))
    for dataset in datasets:
        if cfg is not None and len(dataset.class_names) != cfg.MODEL.ROI_HEADS.NUM_CLASSES:
            text = (
                f"{dataset.json_file} has {len(dataset.class_names)} "
                f"({show(list(dataset.class_names.values()))}), the config "
                f"{cfg.MODEL.ROI_HEADS.NUM_CLASSES}"
            )
            collector.add("num_classes", lambda t=text, d=dataset: Example(t, d.json_file))


def check_balance(datasets: Sequence[Dataset], collector: Collector) -> None:
    """Find rare classes and the share of blanks, over all files together."""
    counts: dict[str, int] = defaultdict(int)
    for dataset in datasets:
        for name, count in dataset.summary.classes.items():
            counts[name] += count
    most = max(counts.values(), default=0)
    for name, count in counts.items():
        if 0 < count * _RARE < most:
            text = f"{show(name)}: {count} of {sum(counts.values())}"
            collector.add("class_imbalance", lambda t=text: Example(t))
    if not any(
        m.entry.get("iscrowd") != 1 for dataset in datasets for m in dataset.examined.measured
    ):
        collector.add("nothing_to_train", lambda: Example(datasets[0].json_file))
    blanks = sum(dataset.summary.blanks for dataset in datasets)
    images = sum(dataset.summary.num_images for dataset in datasets)
    collector.describe("image_blank", f"{blanks / images:.0%} of all" if images else "")
