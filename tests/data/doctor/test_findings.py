import inspect
import re

from support import ROOT

from microplastics.data.coco import ERRORS, WARNINGS
from microplastics.data.doctor import model_fit
from microplastics.data.doctor.findings import CHANGES, CODES, INFO, PROBLEM, WARNING, Changes


def test_every_code_of_the_check_before_training_is_known():
    assert set(ERRORS) | set(WARNINGS) <= set(CODES)
    assert all(CODES[code].severity == PROBLEM for code in ERRORS)
    assert all(CODES[code].severity in (WARNING, INFO) for code in WARNINGS)


def test_the_docs_list_every_code_as_it_is():
    text = (ROOT / "docs/doctor.md").read_text()
    rows = {
        f"| `{code}` | {k.severity} | {k.what} | {k.consequence} | {k.mend} | "
        f"{'yes' if k.fixable else ''} |"
        for code, k in CODES.items()
    }
    listed = {line for line in text.splitlines() if line.count("|") == 7 and line[2] == "`"}
    assert listed == rows
    of_model = set(re.findall(r'Finding\(\s*"(\w+)"', inspect.getsource(model_fit)))
    assert of_model and all(f"| `{code}` |" in text for code in of_model)


def test_words_are_sentences():
    for code, kind in CODES.items():
        assert kind.consequence[-1] == kind.mend[-1] == ".", code
        assert kind.what[-1] != "." and kind.mend[0].isupper(), code


def test_changes_are_counted():
    changes = Changes()
    changes.add("id", 4, 0, "id 0", new=7)
    changes.add("bbox", 4, 7, "bbox_field")
    changes.add("id", 5, 0, "id 0", new=8)
    assert changes.counts() == {"bbox": 1, "id": 2} and set(changes.counts()) <= set(CHANGES)
    assert changes.entries[0] == {"change": "id", "index": 4, "id": 0, "reason": "id 0", "new": 7}
