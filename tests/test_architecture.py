"""The order of the packages in docs/architecture.md: imports run one way."""

import ast
import re

from support import ROOT

PACKAGE = ROOT / "microplastics"
# Top to bottom; a package imports packages below it, and none on its own line or above.
LAYERS = [
    ["cli", "mask_rcnn"],
    ["review"],
    ["experiments", "export", "report"],
    ["runs"],
    ["inference", "writers"],
    ["engine"],
    ["evaluation", "synthetic", "visualization"],
    ["counts", "roi"],
    ["data"],
    ["measurement"],
    ["calibration", "modeling"],
    ["config", "model_zoo", "structures"],
    ["utils"],
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def imported(path):
    """Packages that a module imports, at its top or inside a function."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        module = getattr(node, "module", None) or ""
        if isinstance(node, ast.ImportFrom) and module.split(".")[0] == "microplastics":
            for name in [module] if "." in module else [f"x.{alias.name}" for alias in node.names]:
                yield name.split(".")[1]


def test_imports_run_one_way():
    upwards = []
    for path in PACKAGE.rglob("*.py"):
        package = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for other in set(imported(path)) & set(LEVEL):
            names_of_configs = {package, other} == {"config", "model_zoo"}
            if package in LEVEL and other != package and not names_of_configs:
                if LEVEL[other] <= LEVEL[package]:
                    upwards.append(f"{path.relative_to(ROOT)} imports {other}")
    assert not upwards


def test_the_docs_name_every_package():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    packages = {p.parent.name for p in PACKAGE.glob("*/__init__.py")} | {"config", "mask_rcnn"}
    assert set(LEVEL) == packages
    assert packages <= set(re.findall(r"`(\w+)(?:/|\.py)?`", text))
