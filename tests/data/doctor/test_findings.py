"""The table of codes, its page in the docs, and the list of changes."""

import shutil

import pytest
from support import ROOT

from microplastics.data.doctor.findings import (
    CHANGES,
    CODES,
    SEVERITIES,
    Collector,
    Diagnosis,
    Example,
    update_docs,
)
from microplastics.data.doctor.fix import Changes


def test_the_docs_are_up_to_date(tmp_path):
    page = tmp_path / "doctor.md"
    shutil.copy(ROOT / "docs/doctor.md", page)
    update_docs(page)
    assert page.read_text() == (ROOT / "docs/doctor.md").read_text(), "run update_docs"
    assert all(f"| `{code}` |" in page.read_text() for code in CODES)


def test_the_table_is_complete():
    for code, finding in CODES.items():
        assert finding.severity in SEVERITIES, code
        assert finding.consequence[-1] == finding.fix[-1] == ".", code
        assert finding.what[-1] != "." and finding.fix[0].isupper(), code


def test_findings_are_counted_and_sorted():
    collector = Collector()
    collector.add("crowd", Example, "here")
    for number in range(7):
        collector.add("overlap", Example, f"place {number}")
    collector.add("not_json", Example, "file")
    collector.describe("crowd", "half")
    collector.describe("keypoints", "none")
    found = Diagnosis([], collector.findings()).findings
    assert [(f.code, f.count, len(f.examples)) for f in found] == [
        ("not_json", 1, 1),
        ("overlap", 7, 5),
        ("crowd", 1, 1),
    ]
    assert found[2].what == f"{CODES['crowd'].what} (half)" and CODES["crowd"].examples == []


def test_changes_are_counted():
    changes = Changes()
    changes.add("id", 4, 0, "id 0", new=7)
    changes.add("bbox", 4, 7, "bbox_field")
    changes.add("id", 5, 0, "id 0", new=8)
    assert changes.counts() == {"bbox": 1, "id": 2} and set(changes.counts()) <= set(CHANGES)
    assert changes.entries[0] == {"change": "id", "index": 4, "id": 0, "reason": "id 0", "new": 7}
    with pytest.raises(KeyError):
        changes.add("unknown", 0, 0, "")
