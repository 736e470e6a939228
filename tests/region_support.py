"""What the tests of regions share: outlines, and the shortest way to a region."""

import json

from microplastics.roi.region import RegionSource

SIZE = (60, 80)
SQUARE = [[10, 20], [50, 20], [50, 45], [10, 45], [10, 20]]
HOLE = [[20, 30], [30, 30], [30, 40], [20, 40], [20, 30]]
POLYGON = {"type": "Polygon", "coordinates": [SQUARE, HOLE]}
FEATURE = {"type": "Feature", "geometry": POLYGON, "properties": {"objectType": "annotation"}}


def write(path, content):
    """Write a text, or anything else as JSON, and give the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def region_of(path, size=SIZE, name="a.tif"):
    """The region of one image, (height, width) px, as ``--region path`` gives it."""
    source = RegionSource(str(path))
    source.check([name])
    return source.of_image(name, size, None)
