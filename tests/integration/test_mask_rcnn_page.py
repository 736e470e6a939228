"""docs/mask_rcnn.md: its examples run and print what it says.

``UPDATE_PAGE=1`` writes the outputs of this run into the page.
"""

import functools
import io
import os
import re

import pytest
from support import ROOT

PAGE = ROOT / "docs" / "mask_rcnn.md"
BLOCKS = re.compile(r"```python\n(.*?)```\n(?:\n```text\n(.*?)```\n)?", re.DOTALL)


def words(text):
    """The text with all numbers alike: those of another machine are others."""
    return re.sub(r"-?\d+(\.\d+)?(e-?\d+)?", "1", text)


@pytest.mark.slow
def test_the_examples_print_what_the_page_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text, printed = PAGE.read_text(encoding="utf-8"), []
    namespace = {"__name__": "page"}
    for code, _ in BLOCKS.findall(text):
        output = io.StringIO()  # for the examples alone: loggers write to stdout
        namespace["print"] = functools.partial(print, file=output)
        exec(compile(code, PAGE.name, "exec"), namespace)
        printed.append(output.getvalue())
    if os.environ.get("UPDATE_PAGE"):
        outputs = iter(printed)
        text = BLOCKS.sub(lambda b: f"```python\n{b[1]}```\n\n```text\n{next(outputs)}```\n", text)
        PAGE.write_text(text, encoding="utf-8")
    said = [output for _, output in BLOCKS.findall(text)]
    assert [words(each) for each in printed] == [words(each) for each in said]
