from microplastics.measurement.analytic import standard_shapes


def test_the_table_is_printed(cli):
    done = cli("measurement-errors", "--drawings", "1")
    assert done.returncode in (None, 0)
    assert done.stdout.startswith("| shape | eq. diameter % |")
    rows = done.stdout.splitlines()
    assert len(rows) == 2 + len(standard_shapes())
    assert {row.count("|") for row in rows} == {10}
    assert "| ring, radius 25, 4 wide | " in done.stdout


def test_no_drawings_are_an_error(cli):
    done = cli("measurement-errors", "--drawings", "0")
    assert done.returncode == 2
    assert "'--drawings': 0 is not in the range x>=1" in done.stderr
