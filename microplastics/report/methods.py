"""Model and method of a run, in the words that reporting guidelines ask for.

Cowger et al. 2020, doi:10.1177/0003702820930292; Brander et al. 2020,
doi:10.1177/0003702820945713.
"""

import dataclasses
import os
from typing import Any

import pandas as pd

import microplastics
from microplastics.counts.corrections import parse_volume
from microplastics.measurement.table import parse_size_classes
from microplastics.report.page import Column, Table, number
from microplastics.runs.finished import FinishedRun
from microplastics.runs.store import RUN_FILE, SAMPLES_FILE, SUMMARY_FILE
from microplastics.runs.summaries import counted as count
from microplastics.utils.errors import UserError
from microplastics.utils.io import sha256_of
from microplastics.writers.registry import PARTICLES_FILE

_SOURCES = {
    "option": "given on the command line (--confidence-threshold)",
    "config": "given in the config (TEST.COUNTING.CLASS_SCORE_THRESH)",
    "checkpoint": "of the checkpoint",
    "default": "the default, not chosen on validation images",
}


@dataclasses.dataclass(frozen=True)
class Missing:
    """Words of the methods that only the laboratory can fill in."""

    text: str


def model_facts(run: FinishedRun) -> list[tuple[str, str]]:
    """What found the particles, as pairs of a title and words."""
    record = run.found_by
    training = record.get("training")
    training = training if isinstance(training, dict) else {}
    if "checkpoint" not in record:
        return _given_masks(record)
    facts = [
        ("Checkpoint", record.get("checkpoint")),
        ("SHA-256", record.get("checkpoint_sha256")),
        ("Architecture", training.get("architecture")),
        ("Trained on", _names(training.get("datasets"))),
        ("Iteration", training.get("iteration") and number(training["iteration"])),
        ("Validated on", _names(training.get("validation_datasets"))),
        ("Least scores", _thresholds(record)),
        ("How they were chosen", _origin(record, training)),
        ("Least value of a mask's pixel", record.get("mask_threshold")),
        ("Input of the network", _network_input(record)),
        ("Windows", _windows(run)),
        ("Arithmetic", record.get("precision")),
    ]
    return [(title, str(words)) for title, words in facts if words not in (None, "")]


def _given_masks(record: dict[str, Any]) -> list[tuple[str, str]]:
    masks = record.get("masks")
    facts = [("Masks", "given, not predicted by this run")]
    if isinstance(masks, dict):
        facts += [(str(path), f"SHA-256 {digest}") for path, digest in list(masks.items())[:10]]
        if len(masks) > 10:
            facts.append(("and", f"{len(masks) - 10} more files, in {RUN_FILE}"))
    return facts


def _names(names: Any) -> str:
    return ", ".join(map(str, names)) if isinstance(names, list) else ""


def _thresholds(record: dict[str, Any]) -> str:
    values = record.get("score_thresholds")
    items = values.items() if isinstance(values, dict) else ()
    return ", ".join(f"{name} {value}" for name, value in items)


def _origin(record: dict[str, Any], training: dict[str, Any]) -> str:
    source = record.get("score_thresholds_from")
    words, origin = _SOURCES.get(source, ""), training.get("thresholds_origin")
    if source != "checkpoint" or not isinstance(origin, dict):
        return words
    goals = {"f1": "the highest F1 at IoU 0.5", "count": "the smallest error of the count"}
    metric = str(origin.get("metric"))
    goal = goals.get(metric, metric)
    kept = origin.get("kept_default")
    kept = f"; the default {origin.get('default')} for {_names(kept)}" if kept else ""
    images = origin.get("images")
    where = f"{_names(origin.get('datasets'))} ({images} images)"
    return f"{words}: {goal} on {where}{kept}"


def _network_input(record: dict[str, Any]) -> str:
    low, high = record.get("min_size_test"), record.get("max_size_test")
    return f"shorter side {low} px, longer at most {high} px" if low and high else ""


def _windows(run: FinishedRun) -> str:
    sides = [each["tile"] for each in run.image_records.values() if each.get("tile")]
    if not sides:
        return "none: each image went through whole"
    joined = "joined" if run.found_by.get("join") else "not joined"
    return (
        f"{count(len(sides), 'image')} cut into windows of {min(sides)} to {max(sides)} px; pieces "
        f"of fibres {joined}"
    )


def validation_table(run: FinishedRun) -> Table | None:
    """Scores of the checkpoint on its validation images, None if it has none."""
    training = run.found_by.get("training")
    metrics = training.get("metrics") if isinstance(training, dict) else None
    if not isinstance(metrics, dict) or not metrics:
        return None
    columns = [
        ("segm/AP", "mask AP", 3),
        ("segm/AP50", "mask AP50", 3),
        ("counting/precision", "precision, %", 3),
        ("counting/recall", "recall, %", 3),
        ("counting/F1", "F1, %", 3),
        ("counting/count_true", "true", None),
        ("counting/count_predicted", "found", None),
        ("counting/count_error_pct", "count error, %", 3),
    ]
    rows = []
    for name in ("", *run.class_names):
        suffix = f"-{name}" if name else ""
        values = [metrics.get(f"{key}{suffix}") for key, _, _ in columns]
        values = [each if isinstance(each, (int, float)) else None for each in values]
        if any(value is not None for value in values):
            rows.append([name or "all classes", *values])
    head = [Column("Class"), *(Column(title, digits) for _, title, digits in columns)]
    note = "Counts at the least score that held during training, not at those of this run."
    return Table("Scores of this checkpoint on its validation images", head, rows, note)


def methods_text(run: FinishedRun, counted: pd.DataFrame) -> list[list[str | Missing]]:
    """Paragraphs to paste: words, and what is missing among them."""
    return [
        [*_photographs(run)],
        [*_detection(run)],
        [*_sizes(run, counted), " ", _lengths(run)],
        [*_sampling(run)],
        [*_blanks(run)],
        [*_software(run)],
    ]


def _photographs(run: FinishedRun) -> list[str | Missing]:
    sources = run.images["calibration_source"].dropna().unique().tolist()
    scales = run.images["um_per_px"].dropna()
    words: list[str | Missing] = [
        Missing(
            "sample matrix, place, date, volume or mass, number of replicates, filter and its "
            "pore size, treatment such as digestion, density separation and staining"
        ),
        " ",
        f"{count(len(run.images), 'photograph')} were examined, taken with ",
        Missing("microscope or camera, objective, illumination"),
        ". ",
    ]
    if not len(scales):
        return [*words, "Their scale is not known; sizes are in pixels."]
    span = f"{scales.min():.4g}"
    if scales.max() > scales.min():
        span += f" to {scales.max():.4g}"
    source = "; ".join(map(str, sources[:3])) + ("; and others" if len(sources) > 3 else "")
    words.append(f"Their scale is {span} µm per pixel ({source}), checked with ")
    return [*words, Missing("stage micrometer or other standard, date"), "."]


def _detection(run: FinishedRun) -> list[str | Missing]:
    record = run.found_by
    if "checkpoint" not in record:
        return [
            "Particles were outlined by ",
            Missing("who or what outlined and classified them"),
            f" as {', '.join(run.class_names)}.",
            *([" ", *_checked(run)] if run.review else []),
        ]
    digest = str(record.get("checkpoint_sha256", ""))
    training = record.get("training") if isinstance(record.get("training"), dict) else {}
    words = (
        f"Particles were found, outlined and classified as {', '.join(run.class_names)} by an "
        f"instance segmentation model ({training.get('architecture', 'Detectron2')}, checkpoint "
        f"SHA-256 {digest}) trained on {_names(training.get('datasets')) or 'data not named in it'}"
        f", with least scores {_thresholds(record)} ({_origin(record, training)})."
    )
    return [
        f"{words} Polymers were identified by ",
        Missing("FTIR, Raman or other method and fraction of particles, or: not identified"),
        ". ",
        *_checked(run),
    ]


def _checked(run: FinishedRun) -> list[str | Missing]:
    if run.review is None:
        missing = Missing("who checked what, with which agreement, or: not checked")
        return ["Particles were checked by a person: ", missing, "."]
    names, states = run.review["reviewers"], run.review["states"]
    words = ", ".join(f"{number} {state}" for state, number in sorted(states.items()))
    return [
        f"Particles were checked by {_names(names) or 'nobody yet'}, all of them on "
        f"{run.review['finished_images']} of {count(len(run.images), 'photograph')} ({words}), "
        "with an agreement of ",
        Missing("kappa of two persons, or: not measured"),
        ".",
    ]


def _sizes(run: FinishedRun, counted: pd.DataFrame) -> list[str | Missing]:
    words = "Size is the largest Feret diameter of a particle's outline. "
    low = run.options.min_size
    column = "feret_max_um" if "feret_max_um" in counted else "feret_max_px"
    unit = "µm" if column.endswith("um") else "px"
    smallest = counted[column].min() if len(counted) else None
    found = f"the smallest particle counted has {number(smallest, 3)} {unit}" if smallest else ""
    if low is not None:
        words += f"Particles from {number(low)} {unit} on were counted" + (
            f"; {found}. " if found else ". "
        )
        rest: list[str | Missing] = ["The smallest size that is found reliably is "]
    else:
        words += "No smallest size was set" + (f"; {found}. " if found else ". ")
        rest = ["The smallest size that is found reliably, and below which counts are too low, is "]
    rest += [Missing("µm, from recovery of particles of known size"), ". "]
    if unit == "µm":
        rest.append(f"Size classes in µm: {_classes(run)}. ")
    edges = {
        "count": "Particles at the border of a photograph were counted.",
        "exclude": "Particles at the border of a photograph were not counted.",
        "weight": "Particles at the border of a photograph were not counted, and the others were "
        "weighted for it (Miles and Lantuéjoul).",
    }
    return [words, *rest, edges.get(run.options.edge, "")]


def _lengths(run: FinishedRun) -> str:
    """Which lengths follow the centreline, by the table and, of what was not found, run.json."""
    particles, recorded = run.particles, run.found_by.get("fiber_classes")
    if particles["length_method"].isna().any():  # of an older version, which did not say
        return ""
    methods = particles.groupby("class")["length_method"].unique().map(set).to_dict()
    fibers = recorded if isinstance(recorded, list) else []
    groups: dict[str, list[str]] = {
        "along the centreline, from tip to tip": [],
        "as the largest Feret diameter": [],
        "by one of these in some images and by the other in others": [],
    }
    by_centerline, by_feret, by_both = groups.values()
    for name in run.class_names:
        found = methods.get(name, {"centerline"} if name in fibers else {"feret_max"})
        own = by_both if len(found) > 1 else by_centerline if "centerline" in found else by_feret
        own.append(name)
    words = [f"of {_names(names)} {how}" for how, names in groups.items() if names]
    return f"Lengths were measured {', '.join(words)} (column length_method)."


def _classes(run: FinishedRun) -> str:
    return ", ".join(parse_size_classes(run.options.size_classes).labels).replace(" um", "")


def _sampling(run: FinishedRun) -> list[str | Missing]:
    samples = run.sample_rows
    areas = samples["area_mm2"]
    words: list[str | Missing] = []
    if areas.notna().any():
        total = f"{number(areas.sum(), 4)} mm² in all"
        least, most = number(areas.min(), 4), number(areas.max(), 4)
        each = f"{least if least == most else f'{least} to {most}'} mm² a sample"
        words.append(f"The area examined is {total if len(samples) == 1 else f'{total}, {each}'}. ")
    else:
        words += ["The area examined is ", Missing("mm²; the photographs have no scale"), ". "]
    if run.options.region is not None:
        region = os.path.basename(str(run.options.region).rstrip("/"))
        words.append(f"Particles count within a region of interest ({region}). ")
    if run.options.filter_area_mm2 is not None:
        words.append(f"The filter has {number(run.options.filter_area_mm2)} mm²; ")
        words.append("counts were scaled from the area examined to it. ")
    elif run.options.sampled_volume is not None:
        fraction = run.options.counted_fraction
        words.append(f"The photographs show a fraction of {fraction:g} of the filter. ")
    else:
        words += [
            "The photographs show ",
            Missing("fraction of the filter and how it was chosen"),
            ". ",
        ]
    if run.options.sampled_volume is None:
        return [*words, "The volume sampled is ", Missing("L"), "."]
    return [*words, f"The volume filtered is {_volume(run)} for each sample."]


def _volume(run: FinishedRun) -> str:
    text = str(run.options.sampled_volume)
    if text.lower().endswith(".csv"):
        return f"that of the table {os.path.basename(text)}"
    try:
        return f"{number(parse_volume(text))} L"
    except UserError:
        return text


def _blanks(run: FinishedRun) -> list[str | Missing]:
    if not run.blanks:
        return [
            "No procedural blanks were counted in this run, and counts are not corrected for them. "
            "Contamination was controlled by ",
            Missing(
                "field and laboratory blanks, their number and counts; clothing, air, glassware"
            ),
            ".",
        ]
    blanks = run.summary[run.summary["image"].isin(run.blanks)]
    found = int(blanks["count"].sum())
    rest = run.sample_rows
    limits = " A limit of detection needs two blanks and more."
    if "lod" in rest and rest["lod"].notna().any():
        keys = ("lod", "loq", "currie_detection_limit")
        lod, loq, currie = (number(rest[key].max(), 3) for key in keys)
        limits = (
            f" Limit of detection {lod}, of quantification {loq}, Currie's detection limit "
            f"{currie} particles in a sample."
        )
    return [
        f"{count(len(run.blanks), 'procedural blank')} had {count(found, 'particle')}; the number "
        "to expect from them on the area examined was subtracted (columns count_corrected, "
        f"docs/counts.md).{limits} Further measures against contamination: ",
        Missing("field blanks, clothing, air, glassware"),
        ".",
    ]


def _software(run: FinishedRun) -> list[str | Missing]:
    record = run.found_by
    versions = [
        f"{title} {record[key]}"
        for key, title in (("detectron2", "Detectron2"), ("torch", "PyTorch"), ("python", "Python"))
        if record.get(key)
    ]
    own = record.get("microplastics", microplastics.__version__)
    using = f" with {', '.join(versions)}" if versions else ""
    return [
        f"Counting and measuring used microplastics {own}{using}. Intervals of counts are exact "
        "Poisson intervals of 95 % (Garwood 1936), of fractions Wilson's, of medians by bootstrap; "
        "they tell of the chance of sampling, not of the model's errors. Commands, settings and "
        f"SHA-256 of each photograph are in {RUN_FILE}; the tables are available at ",
        Missing("repository or on request"),
        ".",
    ]


def file_table(run: FinishedRun) -> Table:
    """The files of the run that the report was made of, with their hashes."""
    names = (PARTICLES_FILE, SUMMARY_FILE, SAMPLES_FILE, RUN_FILE)
    rows = [[name, sha256_of(run.folder / name)] for name in names if (run.folder / name).is_file()]
    return Table(
        "The files that this report was made of", [Column("File"), Column("SHA-256")], rows
    )
