"""Writing splits and folds: the annotation files, the images where asked, and the manifest."""

import os
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate
from tqdm import tqdm

from microplastics.data.coco import read_json
from microplastics.data.formats.placing import place_image
from microplastics.data.splits.groups import listed
from microplastics.data.splits.plan import Plan, SplitOptions, plan_splits, read_source
from microplastics.errors import UserError
from microplastics.files import write_json

MANIFEST = "splits.json"
_CONFIG = "configs/microplastics_r50.yaml"


@dataclass(frozen=True)
class Output:
    """One annotation file.

    Attributes:
        name: ``train``, or ``fold1/train``.
        path: where it lies.
        image_root: folder that its file names are relative to.
        chosen: bool (N,), its images.
    """

    name: str
    path: Path
    image_root: Path
    chosen: np.ndarray

    @property
    def entry(self) -> str:
        """``JSON:IMAGES`` for ``DATASETS.TRAIN`` and ``DATASETS.TEST``."""
        return f"{self.path}:{self.image_root}"


def split_dataset(
    json_files: Sequence[str],
    image_roots: Sequence[str],
    output: str | os.PathLike,
    options: SplitOptions,
    place: str = "keep",
) -> str:
    """Split a data set and write it; nothing is written before everything has been checked.

    Args:
        json_files: COCO instance JSONs.
        image_roots: the image folder of all of them, or one for each.
        output: folder for the annotation files and ``splits.json``.
        options: how to split.
        place: ``"keep"`` leaves the images where they are; ``"copy"`` and ``"link"`` put them
            into ``output``: below ``train``, ``val``, ``test``, or below ``images`` for folds.

    Returns:
        words and a table for the person: what is where.

    Raises:
        UserError: the input cannot be used, or ``output`` holds other splits.
    """
    output = Path(output)
    settings = {
        "annotations": list(json_files),
        "images": list(image_roots),
        "place": place,
        **asdict(options),
        "shares": list(options.shares) if options.shares is not None else None,
        "fold_lists": list(options.fold_lists),
    }
    earlier = _check_earlier(output, settings)
    plan = plan_splits(read_source(json_files, image_roots), options)
    _check_unmoved(plan, output, earlier)
    outputs = _outputs(plan, output, place)
    _check_free(plan, output, outputs, json_files)
    if place != "keep":
        _place_images(plan, outputs, place)
    for item in tqdm(outputs, desc="writing", unit="file", disable=None, leave=False):
        write_json(item.path, _selected(plan.source.data, item.chosen))
    write_json(output / MANIFEST, _manifest(plan, outputs, settings, output), indent=1)
    return _describe(plan, outputs, output)


def _check_earlier(output: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the manifest of an earlier run with these settings; empty where there was none."""
    if not os.path.lexists(output / MANIFEST):
        return {}
    manifest = read_json(output / MANIFEST, meant="a manifest of splits")
    earlier = manifest.get("settings")
    if earlier == settings:
        return manifest
    earlier = earlier if isinstance(earlier, dict) else {}
    changed = [key for key in settings if earlier.get(key) != settings[key]]
    raise UserError(
        f"{output} holds splits made with other settings ({', '.join(changed)}); choose another "
        f"--output, or delete {output / MANIFEST} and the annotation files beside it."
    )


def _check_unmoved(plan: Plan, output: Path, earlier: dict[str, Any]) -> None:
    """Refuse to move an image from one split to another, as where the input has changed.

    A model that was trained on the earlier splits would be tested on what it has seen.
    """
    before, now = earlier.get("images"), _places(plan)
    before = before if isinstance(before, dict) else {}
    moved = [
        name for name, place in now.items() if _part(before.get(name)) not in (None, _part(place))
    ]
    if moved:
        raise UserError(
            f"{output} holds splits of an earlier state of the input, in which {len(moved)} images "
            f"lie elsewhere ({listed(moved)}); choose another --output, or delete "
            f"{output / MANIFEST} and the annotation files beside it."
        )


def _part(place: Any) -> Any:
    return place.get("fold", place.get("split")) if isinstance(place, dict) else None


def _check_free(
    plan: Plan, output: Path, outputs: Sequence[Output], json_files: Sequence[str]
) -> None:
    inputs = {os.path.realpath(path) for path in json_files}
    known = os.path.lexists(output / MANIFEST)
    for item in outputs:
        if os.path.realpath(item.path) in inputs:
            raise UserError(
                f"{item.path} is an input and would be overwritten; choose another " "--output."
            )
        # A run that was stopped leaves files without a manifest, which are as they would be now.
        if os.path.lexists(item.path) and not known and not _is_written(plan, item):
            raise UserError(
                f"{item.path} is there already, without a {MANIFEST}; choose another --output, or "
                "delete it."
            )


def _is_written(plan: Plan, item: Output) -> bool:
    return item.path.is_file() and read_json(item.path) == _selected(plan.source.data, item.chosen)


def _outputs(plan: Plan, output: Path, place: str) -> list[Output]:
    kept = Path(plan.source.image_root)
    found = []
    for part, name in enumerate(plan.parts):
        inside = plan.assignment == part
        if not plan.are_folds:
            path = output / "annotations" / f"instances_{name}.json"
            found.append(Output(name, path, kept if place == "keep" else output / name, inside))
            continue
        root = kept if place == "keep" else output / "images"
        for role, chosen in (("train", ~inside), ("val", inside)):
            path = output / name / "annotations" / f"instances_{role}.json"
            found.append(Output(f"{name}/{role}", path, root, chosen))
    return found


def _place_images(plan: Plan, outputs: Sequence[Output], place: str) -> None:
    names = plan.source.file_names
    # Folds share one folder: there every image comes several times, and is placed once.
    wanted = {
        item.image_root / names[index]: Path(plan.source.image_root) / names[index]
        for item in outputs
        for index in np.flatnonzero(item.chosen)
    }
    for target, source in tqdm(wanted.items(), desc=f"{place} images", unit="image", disable=None):
        place_image(source, target, place)


def _selected(data: dict[str, Any], chosen: np.ndarray) -> dict[str, Any]:
    images = [image for image, inside in zip(data["images"], chosen, strict=True) if inside]
    ids = {image["id"] for image in images}
    annotations = [entry for entry in data["annotations"] if entry["image_id"] in ids]
    return {**data, "images": images, "annotations": annotations}


def _manifest(
    plan: Plan, outputs: Sequence[Output], settings: dict[str, Any], output: Path
) -> dict[str, Any]:
    source = plan.source
    return {
        "settings": settings,
        "inputs": source.inputs,
        "seed": settings["seed"],
        "image_root": source.image_root,
        "classes": source.classes,
        "groups": len(set(plan.groups)),
        "deviation": round(plan.deviation, 6),
        "notes": plan.notes,
        "splits": {
            item.name: {
                "annotations": os.path.relpath(item.path, output),
                **_figures(plan, item.chosen),
            }
            for item in outputs
        },
        "images": _places(plan),
    }


def _places(plan: Plan) -> dict[str, dict[str, str]]:
    """The group and the split or fold of each image, by its name."""
    rows = zip(plan.source.file_names, plan.groups, plan.assignment.tolist(), strict=True)
    key = "fold" if plan.are_folds else "split"
    return {name: {"group": group, key: plan.parts[part]} for name, group, part in rows}


def _figures(plan: Plan, chosen: np.ndarray) -> dict[str, Any]:
    source = plan.source
    particles = source.counts[chosen].sum(axis=0).tolist()
    return {
        "images": int(chosen.sum()),
        "groups": len({plan.groups[index] for index in np.flatnonzero(chosen)}),
        "blanks": int(source.blank[chosen].sum()),
        "particles": dict(zip(source.classes, particles, strict=True)),
    }


def _describe(plan: Plan, outputs: Sequence[Output], output: Path) -> str:
    rows = []
    for item in outputs:
        figures = _figures(plan, item.chosen)
        counts = (figures[key] for key in ("images", "groups", "blanks"))
        rows.append([item.name, *counts, *figures["particles"].values()])
    headers = ["split", "images", "groups", "blanks", *plan.source.classes]
    lines = [
        *(f"warning: {note}" for note in plan.notes),
        tabulate(rows, headers, tablefmt="pipe"),
        "",
        f"Largest difference from the shares asked for: {100 * plan.deviation:.1f} points of 100.",
        f"The group and place of every image: {output / MANIFEST}",
        "",
    ]
    if not plan.are_folds:
        keys = {"train": "DATASETS.TRAIN", "val": "DATASETS.TEST", "test": "DATASETS.TEST (test)"}
        return "\n".join([*lines, *(f"{keys[i.name]} {_quoted(i)}" for i in outputs)])
    for number, (train, val) in enumerate(zip(outputs[::2], outputs[1::2], strict=True), 1):
        lines.append(
            f"python tools/train_net.py --config-file {_CONFIG} DATASETS.TRAIN {_quoted(train)} "
            f"DATASETS.TEST {_quoted(val)} MODEL.ROI_HEADS.NUM_CLASSES "
            f"{len(plan.source.classes)} OUTPUT_DIR output/fold{number}"
        )
    return "\n".join(lines)


def _quoted(item: Output) -> str:
    return shlex.quote(f'("{item.entry}",)')
