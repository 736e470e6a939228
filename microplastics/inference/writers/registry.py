"""The output formats by name."""

from microplastics.inference.writers.base import Format
from microplastics.inference.writers.geojson import write_geojson
from microplastics.inference.writers.labels import write_labels
from microplastics.inference.writers.overlay import write_overlay
from microplastics.inference.writers.rois import write_rois

CSV_FILE, PARQUET_FILE = "particles.csv", "particles.parquet"
RESULTS_FILE, ANNOTATIONS_FILE = "coco_instances_results.json", "annotations.json"

FORMATS: dict[str, Format] = {
    form.name: form
    for form in (
        Format("csv", (CSV_FILE,)),
        Format("parquet", (PARQUET_FILE,)),
        Format("coco", (RESULTS_FILE, ANNOTATIONS_FILE)),
        Format("overlays", ("overlays/{}.png",), write_overlay, needs_image=True),
        Format("labels", ("labels/{}.tif",), write_labels),
        Format("rois", ("rois/{}.zip",), write_rois),
        Format("geojson", ("geojson/{}.geojson",), write_geojson),
    )
}
