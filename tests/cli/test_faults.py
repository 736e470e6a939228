"""Commands on full disks, and after they were killed."""

import json
import os

import pytest
from support import dataset_entry

QUICK = ("train", "--config-file", "quick")


@pytest.mark.parametrize("command", ["convert", "split", "render", "export-dataset"])
def test_what_a_killed_command_left_goes_with_the_next(cli, rendered, tmp_path, command):
    json_file, output = rendered / "annotations/instances_train.json", tmp_path / "output"
    images = rendered / "train"
    words = {
        "convert": (command, "--input", json_file, "--images", images, "--copy"),
        "split": (command, "--input", json_file, "--images", images, "--copy"),
        "render": (command, "dataset", *"--train 1 --val 0 --test 0 --size 64".split()),
        "export-dataset": (command, "--input", json_file, "--images", images, "--to", "coco"),
    }[command]
    assert cli(*words, "--output", output).returncode == 0
    manifest = {"export-dataset": "export.json", "render": "synthetic.json"}.get(command)
    if manifest:  # as it was before the end
        data = json.loads((output / manifest).read_text()) | {"complete": False}
        begun = {key: data[key] for key in data.keys() - {"splits", "notes"}}
        (output / manifest).write_text(json.dumps(begun))
    folder = next(path for path in output.iterdir() if list(path.glob("*.jpg")))
    left = [output / ".x.json.abc.unfinished", folder / ".x.jpg.abc.unfinished"]
    left.append(output / "annotations" / ".instances_train.json.abc.unfinished")
    for path in left:
        path.touch()
    again = cli(*words, "--output", output)
    assert not any(path.exists() for path in left), again.stderr


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a file that is always full")
class TestFullDisk:
    def test_a_training_ends_in_one_sentence(self, cli_process, tiny_opts, tmp_path):
        (tmp_path / "metrics.json").symlink_to("/dev/full")
        (tmp_path / "log.txt").symlink_to("/dev/full")
        done = cli_process(*QUICK, *tiny_opts, "DATASETS.TEST", "()", "OUTPUT_DIR", tmp_path)
        assert done.returncode == 2 and "Traceback" not in done.stderr
        (line,) = (each for each in done.stderr.splitlines() if each.startswith("error: "))
        assert line == (
            f"error: Cannot write {tmp_path}: the disk is full; free some space and run the "
            "command again."
        )

    def test_a_log_that_takes_no_more_stops_nothing(self, cli_process, rendered, tmp_path):
        (tmp_path / "log.txt").symlink_to("/dev/full")
        words = ("--masks", dataset_entry(rendered, "val").split(":")[0], "--um-per-px", "2")
        done = cli_process("measure", *words, "--output", tmp_path, "--no-report")
        assert done.returncode == 0 and done.stderr.count("Traceback") == 0, done.stderr
        assert (tmp_path / "summary.csv").exists()
