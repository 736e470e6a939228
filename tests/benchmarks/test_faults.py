import json

import pytest

from benchmarks.faults import states


def test_states_tell_of_contents_and_not_of_times(tmp_path):
    (tmp_path / "report.html").write_text("<html></html>\n")
    found = []
    for seconds, particles in ((1, 5), (2, 5), (2, 6)):
        data = {"seconds": seconds, "images": [{"particles": particles, "seconds": seconds}]}
        (tmp_path / "run.json").write_text(json.dumps(data))
        line = {"iteration": 1, "time": seconds, "bbox/AP": particles}
        (tmp_path / "metrics.json").write_text(json.dumps(line) + "\n")
        (tmp_path / "a.csv").write_text(str(particles))
        found.append(states(tmp_path))
    first, later, other = found
    assert first == later and first["report.html"] == "whole"
    assert all(other[name] != first[name] for name in ("run.json", "metrics.json", "a.csv"))
    (tmp_path / "report.html").write_text("<html>")
    (tmp_path / ".a.csv.x.unfinished").touch()
    assert states(tmp_path)["report.html"] == "cut off"
    assert ".a.csv.x.unfinished" in states(tmp_path)


@pytest.mark.slow
def test_a_command_is_killed_and_run_again(tool, tmp_path):
    figures = tmp_path / "figures.json"
    words = ("faults", "kill", "--commands", "split", "--number", "1", "--json", figures)
    done = tool("benchmark", *words)
    assert done.returncode == 0, done.stderr
    found = json.loads(figures.read_text())
    assert [row["command"] for row in found["rows"]] == ["split"] and found["wrong"] == []
