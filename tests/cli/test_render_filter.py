import json


def test_renders_a_whole_filter_and_says_where(cli, tmp_path):
    path = tmp_path / "filter.tif"
    options = ("--size", 1024, "--particles", 6, "--filter", "polycarbonate", "--lossless")
    done = cli("render", "filter", "--output", path, *options)
    assert done.returncode == 0
    assert f"{path}: 6 particles, annotations in {tmp_path / 'filter.json'}" in done.stdout
    assert len(json.loads((tmp_path / "filter.json").read_text())["annotations"]) == 6


def test_says_what_found_no_room(cli, tmp_path):
    options = ("--size", 1024, "--particles", 600, "--seed", 1, "--jpeg-quality", 80)
    done = cli("render", "filter", "--output", tmp_path / "filter.tif", *options)
    found = len(json.loads((tmp_path / "filter.json").read_text())["annotations"])
    assert done.returncode == 0 and 100 < found < 600
    assert f"{600 - found} of 600 particles found no room or did not stand out" in done.stdout


def test_errors_are_one_line(cli, tmp_path):
    done = cli("render", "filter", "--output", tmp_path / "filter.tif", "--filter", "wool")
    assert done.returncode == 2 and "--filter is wool; expected one of glass_fiber" in done.stderr
    assert "Traceback" not in done.stderr
