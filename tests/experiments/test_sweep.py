"""Sweep files and the statistics of sweeps."""

import csv
import math

import numpy as np
import pytest
from scipy import stats
from support import user_error

from microplastics import model_zoo
from microplastics.experiments.sweep import markdown, read_sweep, summarise
from microplastics.experiments.timing import expected_seconds
from microplastics.visualization.curves import plot_sweep

FIRST, SECOND = [50.0, 54.0, 52.0], [53.0, 55.0, 57.0]
VALUES = {("a", seed): {"segm/AP": value} for seed, value in enumerate(FIRST)}
VALUES |= {("b", seed): {"segm/AP": value} for seed, value in enumerate(SECOND)}


def test_mean_interval_and_paired_difference():
    first, second = summarise(VALUES, ["segm/AP"])
    assert (second["segm/AP"], second["segm/AP sd"], second["seeds"]) == (55.0, 2.0, 3)
    assert "segm/AP difference" not in first
    expected = stats.t.interval(0.95, 2, loc=55, scale=2 / math.sqrt(3))
    assert (second["segm/AP low"], second["segm/AP high"]) == pytest.approx(expected)
    paired = stats.ttest_rel(SECOND, FIRST).confidence_interval(0.95)
    assert second["segm/AP difference"] == 3.0
    bounds = second["segm/AP difference low"], second["segm/AP difference high"]
    assert bounds == pytest.approx((paired.low, paired.high))
    assert "3.0 [-1.9" not in markdown([first], ["segm/AP"])
    assert "+3.0 [-2.0, +8.0]" in markdown([first, second], ["segm/AP"])


def test_differences_are_of_the_seeds_that_both_have(tmp_path):
    values = {
        ("a", 1): {"segm/AP": 10.0},
        ("a", 2): {"segm/AP": math.nan},
        ("b", 2): {"segm/AP": 30.0},
        ("b", 1): {"segm/AP": 12.0},
        ("c", 3): {},
    }
    _, b, c = summarise(values, ["segm/AP"])
    assert b["segm/AP"] == 21.0 and b["segm/AP difference"] == 2.0
    assert math.isnan(b["segm/AP difference low"]) and math.isnan(c["segm/AP"])
    rows = summarise(values, ["segm/AP"])
    points = [{"run": name, "seed": seed, **v} for (name, seed), v in values.items()]
    plot_sweep(rows, points, ["segm/AP"], tmp_path / "sweep.png")
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", model_zoo.sweep_names())
def test_the_shipped_sweeps_differ_in_what_they_say(name, tiny_opts, tmp_path):
    sweep = read_sweep(name, tiny_opts[-4:], tmp_path)
    assert len(sweep.seeds) == 3 and len(sweep.jobs) == 3 * len(sweep.names)
    heads = {n: sweep.jobs[n, 1].load_config().MODEL.ROI_MASK_HEAD for n in sweep.names}
    found = {
        n: (head.POOLER_TYPE, head.POOLER_RESOLUTION, head.NUM_CONV, head.CLS_AGNOSTIC_MASK)
        for n, head in heads.items()
    }
    assert len(set(found.values())) == len(sweep.names)
    assert found[sweep.names[0]] == ("ROIAlignV2", 14, 2, False)  # that of the config itself


GOOD = "config: quick\nseeds: [1, 2]\nruns:\n  - name: a\n"


@pytest.mark.parametrize(
    ("text", "opts", "code", "words"),
    [
        ("", [], "config_invalid", "is empty"),
        ("a: [", [], "config_invalid", "is not YAML"),
        ("[" * 3000, [], "config_invalid", "is not YAML"),
        ("config: quick\nseed: 1\nruns: []", [], "config_invalid", "unknown field seed"),
        ("config: quick\nruns: []", [], "config_invalid", "has no runs"),
        ("config: nope\nruns: [{name: a}]", [], "file_missing", "no config file nope"),
        ("runs: [{name: a}]", [], "config_invalid", "Run 'a' of"),
        ("config: quick\nruns: [{name: ../a}]", [], "config_invalid", "'../a'"),
        ("config: quick\nruns: [{name: a}, {name: a}]", [], "config_invalid", "named a"),
        ("config: quick\nseeds: [1, 1]\nruns: [{name: a}]", [], "config_invalid", "[1, 1]"),
        (GOOD + "    SOLVER.MAXITER: 3", [], "config_invalid", "Run 'a' of"),
        (GOOD + "    SOLVER.MAX_ITER: many", [], "config_invalid", "SOLVER.MAX_ITER"),
        (GOOD + "    SEED: 3", [], "config_invalid", "sets SEED"),
        (GOOD + "    SOLVER.MAX_ITER: 3", ["SOLVER.MAX_ITER", "2"], "option_conflict", "MAX_ITER"),
        ("metrics: [AP]\n" + GOOD, [], "metric_unknown", "segm/AP"),
    ],
)
def test_mistakes_are_sentences(text, opts, code, words, tiny_opts, tmp_path):
    path = tmp_path / "sweep.yaml"
    path.write_text(text)
    data = tiny_opts[-4:]
    with user_error(code, words):
        read_sweep(str(path), [*data, *opts], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_sweep_runs_is_resumed_and_is_compared(cli, tiny_opts, tmp_path):
    path, output = tmp_path / "sweep.yaml", tmp_path / "out"
    path.write_text(
        "config: quick\nseeds: [1, 2]\nopts: {SOLVER.MAX_ITER: 2, TEST.EVAL_PERIOD: 2}\nruns:\n"
        "  - name: specific\n  - {name: agnostic, MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK: true}\n"
    )
    keys = without(tiny_opts, "SOLVER.MAX_ITER", "TEST.EVAL_PERIOD")
    done = cli("sweep", path, "--output", output, *keys)
    assert done.returncode == 0, done.stderr
    assert "| agnostic" in done.stdout and (output / "sweep.png").stat().st_size > 5000
    runs = list(csv.DictReader(open(output / "runs.csv")))
    order = [(run["run"], run["seed"]) for run in runs]
    assert order == [(n, s) for s in "12" for n in ("specific", "agnostic")]
    rows = list(csv.DictReader(open(output / "sweep.csv")))
    mean = np.mean([float(run["segm/AP"]) for run in runs[1::2]])
    assert float(rows[1]["segm/AP"]) == pytest.approx(mean)
    weights = output / "agnostic_seed2" / "model_final.pth"
    written = weights.stat().st_mtime_ns
    again = cli("sweep", path, "--output", output, *keys)
    assert again.returncode == 0 and weights.stat().st_mtime_ns == written
    left = cli("sweep", path, "--output", output, "--dry-run", *keys)
    assert "of which 0 are left" in left.stdout and "finished runs" in left.stdout

    watch = "SOLVER.EARLY_STOPPING: {ENABLED: true, METRIC: nonsense}"
    text = path.read_text().replace("[1, 2]", "[1]")
    path.write_text(f"{text}  - {{name: broken, {watch}}}\n")
    failed = cli("sweep", path, "--output", output, *keys)
    assert failed.returncode == 3, failed.stderr
    assert "Failed: broken, seed 1: SOLVER.EARLY_STOPPING.METRIC is nonsense" in failed.stdout
    rows = list(csv.DictReader(open(output / "sweep.csv")))
    assert [row["run"] for row in rows] == ["specific", "agnostic"]
    assert "broken" in (output / "sweep.md").read_text()


@pytest.mark.slow
def test_the_time_of_runs_that_have_not_begun_is_measured(cli, tiny_opts, tmp_path):
    path, output = tmp_path / "sweep.yaml", tmp_path / "out"
    path.write_text(GOOD + "  - {name: b, MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK: true}\n")
    expected = cli("sweep", path, "--output", output, "--dry-run", *tiny_opts)
    assert expected.returncode == 0, expected.stderr
    assert "4 runs, of which 4 are left: about" in expected.stdout and not output.exists()
    minutes = [float(line.split("|")[4]) for line in expected.stdout.splitlines() if "few" in line]
    assert len(minutes) == 2
    job, *_ = read_sweep(str(path), tiny_opts, output).jobs.values()
    long = job._replace(opts=(*job.opts, "SOLVER.MAX_ITER", "6000", "TEST.EVAL_PERIOD", "1000"))
    short_seconds, long_seconds = expected_seconds([job, long])
    assert long_seconds > 20 * short_seconds > 0


def without(opts, *keys):
    pairs = zip(opts[::2], opts[1::2], strict=True)
    return [x for key, value in pairs if key not in keys for x in (key, value)]
