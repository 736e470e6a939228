"""QuPath GeoJSON: one detection object a particle, with its measurements."""

import json
import math
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from microplastics import __version__
from microplastics.files import atomic_write
from microplastics.inference.writers.base import ImageResult
from microplastics.inference.writers.outlines import Ring, pixel_polygons

# Ids are derived in this namespace from the image's name and the particle.
_NAMESPACE = uuid.UUID("0d7f3f0c-5c53-5b8e-9a3e-6d1c5f4b2a90")
# Told elsewhere in the feature.
_NO_MEASUREMENT = frozenset(("image", "particle", "class"))


def write_geojson(result: ImageResult, path: Path) -> dict[str, int]:
    """Write the particles of one image as a FeatureCollection that QuPath (0.4 and later) imports.

    Geometries hold exactly the pixels of the masks and are valid, with holes. The objects are
    detections: they show their measurements, their class can be changed and they can be deleted.

    Args:
        result: of the image.
        path: of the file.

    Returns:
        nothing to count.

    Raises:
        UserError: the file cannot be written.
    """
    particles = result.particles
    measurements, metadata = _measurements(result.table)
    columns = zip(
        particles.masks,
        particles.offsets.tolist(),
        particles.ids.tolist(),
        particles.classes,
        result.class_numbers,
        strict=True,
    )
    head = {"type": "FeatureCollection", "microplastics": _provenance(result), "features": []}
    with atomic_write(path) as file:
        file.write(json.dumps(head)[: -len("]}")])
        for row, (mask, offset, particle, name, number) in enumerate(columns):
            feature = {
                "type": "Feature",
                "id": str(uuid.uuid5(_NAMESPACE, f"{particles.image}\n{particle}")),
                "geometry": _geometry(pixel_polygons(mask, offset)),
                "properties": {
                    "objectType": "detection",
                    "name": str(particle),
                    "classification": {"name": name, "color": result.colors[number]},
                    "measurements": {k: v[row] for k, v in measurements if v[row] is not None},
                    "metadata": {k: v[row] for k, v in metadata if v[row] is not None},
                },
            }
            file.write((",\n" if row else "\n") + json.dumps(feature))
        file.write("\n]}\n")
    return {}


def _provenance(result: ImageResult) -> dict[str, Any]:
    height, width = result.particles.image_size
    calibration = result.calibration
    return {
        "version": __version__,
        "image": result.particles.image,
        "width": width,
        "height": height,
        "um_per_px": calibration.um_per_px if calibration else None,
        "calibration_source": calibration.source if calibration else None,
    }


def _measurements(table: pd.DataFrame) -> tuple[list, list]:
    """Numbers and texts of the table, column by column, None where there is none."""
    numbers, texts = [], []
    for column in table.columns.difference(_NO_MEASUREMENT, sort=False):
        values = table[column]
        is_number = pd.api.types.is_numeric_dtype(values) or pd.api.types.is_bool_dtype(values)
        if is_number:
            array = values.to_numpy(dtype=np.float64, na_value=np.nan)
            numbers.append((column, [_number(value) for value in array.tolist()]))
        else:
            texts.append((column, [None if pd.isna(v) else str(v) for v in values]))
    return numbers, texts


def _number(value: float) -> float | int | None:
    if not math.isfinite(value):
        return None
    rounded = float(f"{value:.7g}")
    return int(rounded) if rounded.is_integer() and abs(rounded) < 2**53 else rounded


def _geometry(polygons: list[list[Ring]]) -> dict[str, Any]:
    coordinates = [[_closed(ring) for ring in rings] for rings in polygons]
    if len(coordinates) == 1:
        return {"type": "Polygon", "coordinates": coordinates[0]}
    return {"type": "MultiPolygon", "coordinates": coordinates}


def _closed(ring: Ring) -> list[list[int]]:
    points = ring.tolist()
    points.append(points[0])
    return points
