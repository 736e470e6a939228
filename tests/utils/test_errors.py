"""microplastics/utils/errors.py and the page that lists its codes."""

import ast
import re

from support import ROOT

from microplastics.utils.errors import CODES


def test_the_page_lists_every_code():
    text = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    assert dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", text, re.MULTILINE)) == CODES


def test_every_error_has_a_code():
    for path in (ROOT / "microplastics").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "UserError":
                codes = [keyword.value for keyword in node.keywords if keyword.arg == "code"]
                where = f"{path.relative_to(ROOT)}:{node.lineno}"
                assert codes or len(node.args) == 2, where
                for code in codes:
                    assert not isinstance(code, ast.Constant) or code.value in CODES, where
