"""A diagnosis in words, for the terminal."""

import textwrap

from microplastics.data.doctor.changes import CHANGES
from microplastics.data.doctor.diagnosis import INFO, PROBLEM, WARNING, Diagnosis, Finding, ModelFit
from microplastics.data.doctor.fix import Fixed

_WIDTH = 100
_HEADINGS = {
    PROBLEM: "PROBLEMS: training stops or learns wrong things",
    WARNING: "WARNINGS: training runs; look whether it is meant so",
    INFO: "GOOD TO KNOW",
}


def describe(diagnosis: Diagnosis) -> str:
    """Say what was looked at and what was found, worst first."""
    lines = []
    for data in diagnosis.datasets:
        classes = ", ".join(f"{name} {count}" for name, count in data.classes.items())
        lines.append(
            f"{data.json_file}: {data.num_images} images ({data.blanks} blank), "
            f"{data.num_annotations} annotations{f' ({classes})' if classes else ''}"
        )
    for severity, heading in _HEADINGS.items():
        found = [finding for finding in diagnosis.findings if finding.severity == severity]
        if found:
            lines += ["", heading]
        for finding in found:
            lines += _finding(finding)
    if diagnosis.model_fit:
        lines += ["", *_model_fit(diagnosis.model_fit)]
    counts = {
        words: sum(finding.severity == severity for finding in diagnosis.findings)
        for severity, words in ((PROBLEM, "problems"), (WARNING, "warnings"), (INFO, "notes"))
    }
    lines += ["", "Kinds found: " + ", ".join(f"{words} {n}" for words, n in counts.items()) + "."]
    fixable = sum(finding.fixable for finding in diagnosis.findings)
    if fixable:
        lines[-1] += f" --fix mends {fixable} of them."
    return "\n".join(lines)


def _finding(finding: Finding) -> list[str]:
    fixable = " (--fix)" if finding.fixable else ""
    lines = [f"  {finding.count} x {finding.what}  [{finding.code}]"]
    lines += _wrapped(f"{finding.consequence} {finding.mend}{fixable}", "      ")
    for example in finding.examples:
        lines += _wrapped(f"- {example.text}", "      ", "        ")
    if finding.count > len(finding.examples):
        lines.append(f"      - and {finding.count - len(finding.examples)} more")
    return lines


def _wrapped(words: str, indent: str, following: str | None = None) -> list[str]:
    return textwrap.wrap(
        words,
        _WIDTH,
        initial_indent=indent,
        subsequent_indent=following or indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _model_fit(fit: ModelFit) -> list[str]:
    lines = [f"WHAT THE MODEL OF {fit.config_file} CAN SEE ({fit.sampled} particles looked at)"]
    for name, share in fit.no_anchor_share.items():
        ious = ", ".join(
            f"{size} px: {iou:.2f}" for size, iou in fit.mask_iou.get(name, {}).items()
        )
        lines.append(
            f"  {name}: no anchor for {share:.0%}, under 4 px wide {fit.small_share[name]:.0%}"
            f"{f', mean IoU of masks through a head of {ious}' if ious else ''}"
        )
    return lines


def describe_fixed(fixed: list[Fixed]) -> str:
    """Say what ``--fix`` changed."""
    lines = []
    for one in fixed:
        if one.reason:
            lines.append(f"Not mended: {one.reason}")
            continue
        lines.append(f"Mended copy of {one.json_file}: {one.output}")
        lines += [f"  {count} x {CHANGES[kind]}" for kind, count in one.counts.items()]
        lines.append(f"  every change: {one.changes_file}" if one.counts else "  nothing to change")
    return "\n".join(lines)
