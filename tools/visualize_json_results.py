#!/usr/bin/env python
"""Draw truth and predictions side by side, with the arguments of Detectron2's own script.

python tools/visualize_json_results.py --dataset microplastics_val --output output/pictures \
    --input output/microplastics_r50/inference/coco_instances_results.json
"""

import sys

from microplastics.cli import main

if __name__ == "__main__":
    main(["view", "results", *sys.argv[1:]])
