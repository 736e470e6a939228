"""The table of codes, its page in the docs, and the counts."""

from support import ROOT

from microplastics.data.doctor.findings import (
    CODES,
    SEVERITIES,
    Collector,
    Diagnosis,
    Example,
)


def test_the_docs_are_up_to_date():
    rows = [
        f"| `{f.code}` | {f.severity} | {f.what} | {f.consequence} | {f.fix} "
        f"| {'yes' if f.fixable else ''} | {'yes' if f.convertible else ''} |"
        for f in CODES.values()
    ]
    lines = (ROOT / "docs/doctor.md").read_text(encoding="utf-8").splitlines()
    table = [line for line in lines if line.startswith("| `") and line.count("|") == 8]
    assert table == rows


def test_the_table_is_complete():
    for code, finding in CODES.items():
        assert finding.severity in SEVERITIES, code
        assert finding.consequence[-1] == finding.fix[-1] == ".", code
        assert finding.what[-1] != "." and finding.fix[0].isupper(), code


def test_findings_are_counted_and_sorted():
    collector = Collector()
    collector.add("crowd", Example("here"))
    for number in range(7):
        collector.add("overlap", Example(f"place {number}"))
    collector.add("not_json", Example("file"))
    found = Diagnosis([], collector.findings()).findings
    assert [(f.code, f.count, len(f.examples)) for f in found] == [
        ("not_json", 1, 1),
        ("overlap", 7, 5),
        ("crowd", 1, 1),
    ]
    assert CODES["crowd"].count == 0 and CODES["crowd"].examples == []
