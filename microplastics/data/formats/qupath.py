"""GeoJSON of QuPath: one file an image, as ``predict`` writes it too."""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from microplastics.data.coco import show
from microplastics.data.formats import layout, shapes
from microplastics.data.formats.base import ImageRecord, Instance, Notes, ReadOptions, Source
from microplastics.data.formats.masks import DEFAULT_CLASS
from microplastics.data.formats.shapes import Segmentation, ShapeError

_SUFFIXES = frozenset((".geojson", ".json"))
_SNIFFED_FILES = 20
# Kinds of objects, of QuPath 0.3 and later, and by the ids of earlier ones.
_DETECTIONS = frozenset(("detection", "cell", "PathDetectionObject", "PathCellObject"))
_OTHERS = frozenset(("tile", "tma_core", "root", "PathTileObject", "TMACoreObject"))
_KNOWN = frozenset(("objectType", "object_type", "classification", "color", "colorRGB", "isLocked"))


def detect(path: Path) -> bool:
    """Return whether a file, or one of the first below a folder, is GeoJSON with features."""

    def matches(text: bytes) -> bool:
        return b'"type":"Feature' in text and (b'"geometry":' in text or b'"features":[' in text)

    # Where JSON lies at the top, it is the annotation: a run of predict has GeoJSON below it.
    files = sorted(path.glob("*.json")) if path.is_dir() else []
    files = [file for file in files if not layout.is_manifest(file)][:_SNIFFED_FILES]
    return any(layout.sniff(file, matches, _SUFFIXES) for file in files or [path])


def read(path: Path, options: ReadOptions, notes: Notes) -> dict[str, Source]:
    """Open the GeoJSON of an image, or a folder of them (see ``base.Reader.read``).

    A file is called as its image. Polygons keep their points, those with holes become RLE.
    Detections and cells without a class are particles.
    """
    return layout.read_splits(_Reader, path, options, notes)


class _Reader(layout.FileReader):
    suffixes = _SUFFIXES
    content = (dict, list)
    meaning = "GeoJSON; export the objects from QuPath as a FeatureCollection"

    def __init__(self, path: Path, split: str, options: ReadOptions):
        super().__init__(path, split, options)
        named = [each for each in self._paths if each.suffix.lower() == ".geojson"]
        self._paths = named or self._paths

    def records(self, data: Any, where: str) -> Iterator[ImageRecord]:
        features = data
        if isinstance(data, dict):
            features = data.get("features") if data.get("type") != "Feature" else [data]
        if not isinstance(features, list):
            raise self.foreign(f"{where} has no features")
        head = data.get("microplastics") if isinstance(data, dict) else None
        head = head if isinstance(head, dict) else {}
        stem = PurePosixPath(where).stem
        names = [*filter(None, [head.get("image")]), stem, stem.replace("__", "/")]
        with layout.skipping(where, self.options, self.notes):
            record = self.image(names, where, [(head.get("width"), head.get("height"))])
            for number, feature in enumerate(features, 1):
                place = f"{where}, object {number}"
                with shapes.noting(self.notes, place):
                    record.instances.append(self._instance(feature, record, place))
            yield record

    def _instance(self, feature: Any, record: ImageRecord, where: str) -> Instance:
        properties, geometry = (
            _object(feature).get(key) or {} for key in ("properties", "geometry")
        )
        properties, geometry = _object(properties), _object(geometry)
        kind = properties.get("objectType") or properties.get("object_type") or feature.get("id")
        if isinstance(kind, str) and kind in _OTHERS:
            raise ShapeError("shape_type", show(kind))
        label = _label(properties.get("classification"))
        if label is None and isinstance(kind, str) and kind in _DETECTIONS:
            label = DEFAULT_CLASS
            self.notes.add("class_absent", where)
        shape = _shape(geometry, record, self.notes, where)
        return self.instance([label] if label else [], shape, record, where, properties, _KNOWN)


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ShapeError("shape_broken", "not a JSON object")
    return value


def _label(classification: Any) -> str | None:
    """Return the class; parts of a derived one are joined as QuPath shows them."""
    if isinstance(classification, dict):
        names = classification.get("names")
        if isinstance(names, list) and names:
            return layout.class_name(": ".join(map(str, names)))
        classification = classification.get("name")
    return layout.class_name(classification)


def _shape(
    geometry: dict[str, Any], record: ImageRecord, notes: Notes, where: str
) -> tuple[str, Any]:
    """Return kind and values of a geometry, as ``shapes.area_of`` takes them."""
    kind, coordinates = geometry.get("type"), geometry.get("coordinates")
    if kind in ("Point", "MultiPoint"):
        return "point", []
    if kind == "LineString":
        return "line", shapes.flat(coordinates)
    if kind not in ("Polygon", "MultiPolygon"):
        raise ShapeError("shape_type", show(kind))
    polygons = [coordinates] if kind == "Polygon" else coordinates
    if not isinstance(polygons, list) or not polygons:
        raise ShapeError("shape_broken", f"a {kind} without coordinates")
    parts = [_polygon(rings, record, notes, where) for rings in polygons]
    if len(parts) > 1:
        parts = [shapes.checked(part, record, notes, where).segmentation for part in parts]
        parts = [shapes.union(parts, record.size)]
    return "mask", parts[0]


def _polygon(rings: Any, record: ImageRecord, notes: Notes, where: str) -> Segmentation:
    if not isinstance(rings, list) or not rings:
        raise ShapeError("shape_broken", "a polygon without rings")
    outline, *holes = map(_open, rings)
    return shapes.with_holes(outline, holes, record, notes, where)


def _open(ring: Any) -> Any:
    """Return a ring without the repetition of its first point."""
    closed = isinstance(ring, list) and len(ring) > 3 and ring[0] == ring[-1]
    return ring[:-1] if closed else ring
