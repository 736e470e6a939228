#!/usr/bin/env python
"""Compare this project with plain Detectron2, torchvision and pycocotools: medians and ratios.

python tools/benchmark.py train
"""

import runpy
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
runpy.run_module("benchmarks", run_name="__main__", alter_sys=True)
