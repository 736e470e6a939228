#!/usr/bin/env python
"""Draw annotations or training batches, with the arguments of Detectron2's own visualize_data.py.

python tools/visualize_data.py --source annotation --output-dir output/pictures \
    DATASETS.TRAIN '("path/to.json:path/to/images",)'
"""

import argparse

from microplastics.cli import main

MODES = {"annotation": "annotations", "dataloader": "batches"}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="Further arguments: microplastics view annotations --help.",
        allow_abbrev=False,
    )
    parser.add_argument("--source", choices=MODES, required=True)
    source, arguments = parser.parse_known_args()
    main(["view", MODES[source.source], *arguments])
