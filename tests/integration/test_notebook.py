"""notebooks/tutorial.ipynb: its stored outputs, and a run from top to bottom."""

import json
import math

import nbformat
import pytest
from conftest import ROOT
from nbclient import NotebookClient

NOTEBOOK = ROOT / "notebooks" / "tutorial.ipynb"
PICTURES = {"image/jpeg", "image/png"}


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def outputs(notebook):
    return [output for cell in code_cells(notebook) for output in cell.outputs]


def printed(notebook):
    return "".join(o.text for o in outputs(notebook) if o.output_type == "stream")


def pictures(notebook):
    return sum(bool(PICTURES & set(output.get("data", ()))) for output in outputs(notebook))


@pytest.fixture(scope="module")
def kept():
    return nbformat.read(NOTEBOOK, as_version=4)


@pytest.fixture(scope="module")
def executed(kept, tmp_path_factory):
    """A copy of the notebook after its run, and the folder it ran in."""
    folder = tmp_path_factory.mktemp("notebook")
    notebook = nbformat.from_dict(json.loads(json.dumps(kept)))
    for cell in code_cells(notebook):
        cell.outputs, cell.execution_count = [], None
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources).execute()
    return notebook, folder


def test_the_kept_outputs_are_those_of_one_run(kept):
    nbformat.validate(kept)
    cells = code_cells(kept)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert pictures(kept) == 4 and "AP50" in printed(kept)
    assert not any(o.output_type == "error" or o.get("name") == "stderr" for o in outputs(kept))


def test_the_file_is_small_and_names_no_folder_of_a_machine():
    content = NOTEBOOK.read_text(encoding="utf-8")
    assert len(content) < 600_000
    for word in ("/work", "/root", "/tmp", "/home", "/Users", "site-packages"):
        assert word not in content


@pytest.mark.slow
def test_it_runs_from_top_to_bottom(executed, kept):
    notebook, folder = executed
    assert pictures(notebook) == pictures(kept)
    assert "model_best.pth\nmodel_final.pth" in printed(notebook)
    lines = (folder / "tutorial_output" / "metrics.json").read_text().splitlines()
    metrics = {name: value for line in lines for name, value in json.loads(line).items()}
    assert metrics["iteration"] == 299
    assert metrics["segm/AP50"] > 0 and math.isfinite(metrics["validation/total_loss"])
    losses = [record["total_loss"] for record in map(json.loads, lines) if "total_loss" in record]
    assert losses[-1] < 0.8 * losses[0]
    row = next(line.split() for line in printed(notebook).splitlines() if line.startswith("AP50 "))
    assert row == ["AP50", f"{metrics['bbox/AP50']:.1f}", f"{metrics['segm/AP50']:.1f}"]


def test_what_it_says_is_what_the_repository_has(kept):
    text = "\n".join(cell.source for cell in kept.cells)
    for path in (
        "configs/microplastics_r50.yaml",
        "configs/microplastics_quick.yaml",
    ):
        assert path in text and (ROOT / path).is_file()
    for command in ("train", "evaluate", "view annotations", "view results"):
        assert f"`microplastics {command}" in text
